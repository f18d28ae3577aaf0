// Counts requests for each name, in memory; says how many when a file has the number, too.
const { appendFile } = require("node:fs/promises");
const counts = new Map();

const server = require("node:http").createServer(async ({ url }, response) => {
  const count = (counts.get(url) ?? 0) + 1;
  counts.set(url, count);
  await appendFile("/root/counts", `${url} ${count}\n`);
  response.end(`${count}`);
});
server.keepAliveTimeout = 300_000;  // by default a client that waits for 5 s is sent away
server.listen(80);
