"""Search for field values, or for sub-detectors of one checkpoint.

Trials are training runs, each in its own folder, which Optuna proposes and compares; sub-detectors are not trained.

In: a `LoadedSpec` with an `automl` section, and a function that runs a training session. Out: trials in a database,
`automl.json`, `best_spec.yaml` and the report.

    study       the database, sampler and pruner
    trial       one trial: its spec, its training run, its latency
    worker      trials in separate processes
    record      records scores, outcomes and failures of trials in the study
    loop        chooses trials and runs them; resumes a killed search
    sub_detectors   scores the sub-detectors of one checkpoint instead of training trials
    latency     the latency of weights, by the code of `benchmark`
    results     what the files, the report and the console show

Only `study` and `results` import Optuna, which is an extra.
"""
