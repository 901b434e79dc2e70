"""`mup-lightning bench`: speed and memory, measured in interleaved rounds; `cases` is the table of what there is."""
