-- merge: bring the ledger's recent windows back with max after a loss; `spent` follows by publish (docs/protocol.md).
-- KEYS[1] {tag}epoch
-- ARGV[2] generation  ARGV[3] msgpack list of {tenant, series, period, hour, writer, cumulative}
-- Returns 1, or -1 when the generation has changed (then nothing was done).

load_generation()
if ARGV[2] ~= generation.gen then return -1 end
for _, row in ipairs(cmsgpack.unpack(ARGV[3])) do
  merge_window(row[1], row[2], row[3], row[4], row[5], row[6])
end
return 1
