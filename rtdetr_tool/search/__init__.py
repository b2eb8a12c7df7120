"""Search for field values, or for sub-detectors of one checkpoint.

Trials are training runs, each in its own folder, which Optuna proposes and compares; sub-detectors are not trained.

In: a `LoadedSpec` with an `automl` section, and a function that runs a training session. Out: trials in a database,
`automl.json`, `best_spec.yaml` and the report.

    storage         the database or shared file of the trials
    study           Optuna's study, sampler and pruner
    trial           one trial: its spec, its training run, its latency
    worker          trials in separate processes
    record          records scores, outcomes and failures of trials in the study
    loop            chooses trials and runs them; resumes a killed search
    sub_detectors   scores the sub-detectors of one checkpoint instead of training trials
    latency         the latency of weights, by the code of `benchmark`
    cluster         jobs of SLURM, or processes in their place
    cluster_job     what a job runs
    cluster_search  workers as jobs of a cluster
    results         what the files, the report and the console show

Optuna and submitit are extras, imported where they are used.
"""
