"""K functions by family: each checks its arguments, infers shape and dtype and records nodes; no engine is involved."""
