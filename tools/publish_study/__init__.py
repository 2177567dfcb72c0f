"""A finished study put into the tree: its record, its report, and what the README shows of it.

`record` says what goes where; ``python -m tools.publish_study STUDY`` (``make publish-study``) does it.
"""
