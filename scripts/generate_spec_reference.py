"""Write docs/spec.md from the spec's dataclasses."""

from pathlib import Path

from rtdetr_tool.spec.reference_page import reference_page

if __name__ == "__main__":
    path = Path(__file__).parent.parent / "docs" / "spec.md"
    path.write_text(reference_page(), encoding="utf-8")
    print(f"wrote {path}")
