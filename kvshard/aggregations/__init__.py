"""Aggregations: `model` is what may be asked, `check` fits it to a schema, `partial` is what a part of the documents answers,
`merge` puts parts together, `finish` makes the `results`."""
