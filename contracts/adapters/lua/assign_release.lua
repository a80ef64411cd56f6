-- uses: base, lease
-- Give partitions back; the next owner waits for this event. Only one's own: what is not held any more is skipped.
-- KEYS  P
-- ARGV  lease, token, topic, partition…
-- reply OK partition…  (those released)
-- keys  P:part:<topic>:{want, own, since} HASH, P:lease:<id>:parts SET
local id, topic = ARGV[1], ARGV[3]
local root = P .. ':part:' .. topic
local mine = id .. ',' .. ARGV[2]
local now = now_ms()
local released = {}
for i = 4, #ARGV do
  if redis.call('HGET', root .. ':own', ARGV[i]) == mine then
    redis.call('HDEL', root .. ':own', ARGV[i])
    redis.call('SREM', P .. ':lease:' .. id .. ':parts', topic .. '/' .. ARGV[i])
    settle(topic, ARGV[i], now)
    released[#released + 1] = ARGV[i]
  end
end
if #released > 0 then event('release', 'lease', id, 'topic', topic, 'partitions', table.concat(released, ',')) end
return {'OK', unpack(released)}
