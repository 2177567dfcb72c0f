"""What several runs say together, and results in the forms that others read. Pure functions of saved runs.

Several runs: `samples` (counted rounds as numbers), `comparison` (its interval's method),
`comparison_text`, `comparison_page`; `study` with `study_text`, `study_page`, `study_figures`,
`study_outcomes` and `study_outcome_figures` (by data distribution), `quantiles` (their intervals over
runs), `study_rounds` (what is published of one), `headline` and `headline_figure` (its short table and
figure, beside those of the `published_benchmark`); `reproduction` (new runs against it), `reproduction_text`;
`limit_point` and `limits_text`. One run for others: `frames` (DataFrames), `perfetto_trace` (with
`hops`), `otlp`, `round_figures` (for Prometheus), `paper` (LaTeX, PDF), `heads_pcapng`, `message_table`.
Dropped packets: `drops` (a saved run's), `drops_live`, `drop_explanations` (the policy or the normal work
behind one), `drops_text`, `drops_pcapng`, `packet_filter` (tcpdump's language).
"""
