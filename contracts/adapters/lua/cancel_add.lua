-- uses: (nothing)
-- Tell every worker that these requests are not wanted any more.
-- KEYS  the stream of cancels
-- ARGV  ttl ms, entries kept, request id…
-- reply OK
-- keys  <prefix>:cancels STREAM id, exp; ttl of the longest lived entry
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local expires = string.format('%.0f', now + tonumber(ARGV[1]))
for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'id', ARGV[i], 'exp', expires)
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {'OK'}
