"""From a saved run to a report: timeline, ledger, statistics, figures. Pure functions of data, no root."""
