"""The kernel's network objects: namespaces, links, qdiscs, filters, and what others do to them."""
