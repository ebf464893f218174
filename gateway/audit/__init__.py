"""What happened, provably: records, the tree over them, signed heads, proofs, exports.

records, kinds   what may be written (kinds_*, fields), its exact bytes  (pure)
tree             RFC 9162 hashes, proofs, tiles                        (pure)
checkpoint       signed notes, heads, receipts                         (pure)
verification     whether a ledger or an exported folder is sound       (pure)
ledger           one way to write: rows and records in one commit
sequencer        gives every record its place and signs the head
reading, export  one way to look, one way to hand out
"""
