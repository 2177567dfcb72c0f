"""What is said of a ledger: report.json, table, page, drawings and a sentence of advice. Pure."""
