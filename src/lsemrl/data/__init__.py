"""From a file to batches: read rows, divide them, write the prompts, keep to the limits, collate.

`sources` reads files, `records` validates rows, `splits` divides them by content, `prompts` and `limits` turn them into
examples, `collate` into tensors; `task` strings these together, and `translation`, `headline`, `comprehension`,
`instruction`, `choice` and `mixed` are what a configuration names.
"""
