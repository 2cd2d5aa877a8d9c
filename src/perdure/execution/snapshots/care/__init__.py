"""The care of stored snapshots: verified, explained, drawn as a tree, compacted, and the garbage collected."""
