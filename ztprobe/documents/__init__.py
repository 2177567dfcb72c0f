"""Text and files that others wrote: read whole, within limits that messages name, and strictly.

Every reader of a profile, a manifest, a run directory, a data set or an answer of an API goes
through here. What is wrong is one `DocumentError`: a problem in a few words and, where there is
one, a line. Who asked for the file says which file it was and what to do about it.
"""
