"""Other tools: what assay reads of theirs, and how it plugs into them."""
