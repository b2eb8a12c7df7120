"""The command line, one module per command: parse, call a workflow, print.

`session.run_session` gives every run its results folder, spec dump, `status.json`, log and exit code; `run_lock` keeps
two runs out of one folder; `signals` ends them cleanly; `tables` prints. Which commands exist is in
`spec/commands`. May import everything below `commands`; a command module has at most 80 lines.
"""
