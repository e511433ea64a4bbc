"""Search over a corpus of real texts, beside one tantivy index of the same corpus in one process."""
