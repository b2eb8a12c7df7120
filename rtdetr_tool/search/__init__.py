"""Search for field values: trials are training runs, each in its own folder, which Optuna proposes and compares.

In: a `LoadedSpec` with an `automl` section, and a function that runs a training session. Out: trials in a database,
`automl.json`, `best_spec.yaml` and the report.

    study       the database, sampler and pruner
    trial       one trial: its spec, its training run, its latency
    worker      trials in separate processes
    record      records scores, outcomes and failures of trials in the study
    loop        chooses trials and runs them; resumes a killed search
    results     what the files, the report and the console show

Only `study` and `results` import Optuna, which is an extra.
"""
