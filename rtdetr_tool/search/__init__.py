"""Search for field values: trials are training runs in folders of their own, chosen and compared with Optuna.

In: a `LoadedSpec` with an `automl` section, and a function that runs a training session. Out: trials in a database,
`automl.json`, `best_spec.yaml` and the report.

    study       the database, sampler and pruner
    trial       one trial: its spec, its training run, its latency
    worker      trials in processes of their own
    loop        chooses trials, runs them, records their results; resumes what a killed search left
    results     what the files, the report and the console show

Only `study` and `results` import Optuna, which is an extra.
"""
