"""`rtdetr serve`: an HTTP server that detects objects in the images of requests.

    upload     the images of a request, within limits, and its options
    predictor  decoded images and detections as JSON, for the opened model
    batcher    one thread that runs the model on batches of images of all requests
    app        the endpoints, on Starlette
    metrics    counters for Prometheus
    server     uvicorn, ended without losing a request

Only `upload`, `app`, `metrics` and `server` know about HTTP. Their packages are the extra `serve`.
"""

from rtdetr_tool.formats.table import Packages

PACKAGES = Packages(
    ("starlette", "uvicorn", "python_multipart", "prometheus_client"), 'pip install "rtdetr-tool[serve]"'
)
