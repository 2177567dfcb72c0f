"""What is said of a ledger: report.json, table, page, drawings and a sentence of advice. Pure.

`report` makes report.json (of `sections`, `conditions`, `level_switch`, `attachment`, `communication`,
`workload`), and all else is a function of that: `text_report` the table, `html` the page, `figures` and
`timeline` its drawings, `advice` the sentence, `contention_words` what has to be read first,
`communication_words` what communication costs. `wording` names and formats everything alike.
"""
