"""Other stores to measure beside kvshard: where their programs come from, how they run, how their clients call them.

None of them is needed: what is missing is named in the report, and everything else is measured.
"""
