"""From text to batches: tokenizers, shards, and a sample order that is a pure function of a counter."""
