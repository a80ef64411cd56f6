// Publishes one request and prints its response as JSON: what docs/protocol.md says, and nothing else.
//
//   node client.mjs BOOTSTRAP REQUEST_TOPIC REPLY_TOPIC REPLY_PARTITION [INPUTS]
//
// INPUTS is JSON: [{"name": …, "datatype": …, "shape": […], "values": […]}, …] with the values flat; by default the
// image of the worked example. 64-bit integers are decimal strings. Exits 0 when the status is OK, 2 when it is another
// one, 1 when there was no response.

import { randomBytes } from "node:crypto";
import { parseArgs } from "node:util";

import { decode, encode } from "@msgpack/msgpack";
import { Kafka, logLevel } from "kafkajs";

import { PartitionReader } from "./partition_reader.mjs";
import { decodeTensor, encodeTensor } from "./tensors.mjs";

const USAGE = "usage: client.mjs BOOTSTRAP REQUEST_TOPIC REPLY_TOPIC REPLY_PARTITION [INPUTS]";
const TTL_MS = 10_000;
const GRACE_MS = 2_000;

// prettier-ignore
const ZERO = [
  0, 0, 5, 13, 9, 1, 0, 0,
  0, 0, 13, 15, 10, 15, 5, 0,
  0, 3, 15, 2, 0, 11, 8, 0,
  0, 4, 12, 0, 0, 8, 8, 0,
  0, 5, 8, 0, 0, 9, 8, 0,
  0, 4, 11, 0, 1, 12, 7, 0,
  0, 2, 14, 5, 10, 12, 0, 0,
  0, 0, 6, 13, 10, 0, 0, 0,
];
const DEFAULT_INPUTS = [{ name: "image", datatype: "FP32", shape: [1, 64], values: ZERO }];

async function ensureReplyTopic(kafka, topic, partition) {
  const admin = kafka.admin();
  await admin.connect();
  try {
    if ((await admin.listTopics()).includes(topic)) return;
    const configEntries = [
      { name: "message.timestamp.type", value: "LogAppendTime" },
      { name: "cleanup.policy", value: "delete" },
      { name: "retention.ms", value: "3600000" },
    ];
    const topics = [{ topic, numPartitions: partition + 1, configEntries }];
    await admin.createTopics({ topics, waitForLeaders: true });
  } finally {
    await admin.disconnect();
  }
}

async function publish(kafka, topic, { id, replyAddress, inputs }) {
  const producer = kafka.producer({ idempotent: true, allowAutoTopicCreation: false, createPartitioner: anyPartition });
  await producer.connect();
  try {
    const value = Buffer.from(encode({ inputs: inputs.map(encodeTensor), parameters: {} }));
    const headers = { v: "1.0", id, ttl: String(TTL_MS), re: replyAddress };
    await producer.send({ topic, acks: -1, messages: [{ key: null, value, headers }] });
  } finally {
    await producer.disconnect();
  }
}

function anyPartition() {
  return ({ partitionMetadata }) => {
    const index = Math.floor(Math.random() * partitionMetadata.length);
    return partitionMetadata[index].partitionId;
  };
}

/** The first terminal response to the request; null when the time has passed. */
async function awaitResponse(reader, { id, token }) {
  const end = Date.now() + TTL_MS + GRACE_MS;
  while (Date.now() < end) {
    for (const { headers, value } of await reader.poll(Math.min(500, end - Date.now()))) {
      const text = (name) => headers[name]?.toString("utf8");
      if (text("id") !== id || text("v")?.split(".")[0] !== "1" || text("status") === undefined) continue;
      // Somebody else's failure of the same id is not ours; a result is a result, whoever asked for it.
      if (text("to") !== token && text("status") !== "OK") continue;
      return { id, status: text("status"), to: text("to"), ...bodyOf(value) };
    }
  }
  return null;
}

function bodyOf(value) {
  const { model, version, outputs = [], error = null, receipt = {}, parameters = {} } = decode(value);
  return { model, version, outputs: outputs.map(decodeTensor), error, receipt, parameters };
}

async function main() {
  const { positionals } = parseArgs({ allowPositionals: true });
  if (positionals.length < 4) throw new Error(USAGE);
  const [bootstrap, requestTopic, replyTopic, replyPartition, inputsJson] = positionals;
  const partition = Number(replyPartition);
  const inputs = inputsJson ? JSON.parse(inputsJson) : DEFAULT_INPUTS;

  const options = { clientId: "headrace-protocol-client", brokers: bootstrap.split(",") };
  const kafka = new Kafka({ ...options, logLevel: logLevel.ERROR });
  await ensureReplyTopic(kafka, replyTopic, partition);

  const token = randomBytes(8).toString("hex");
  const id = randomBytes(16).toString("hex");
  const reader = new PartitionReader({ ...options, topic: replyTopic, partition });
  await reader.open(); // before publishing, or the response might be appended before the position is known
  try {
    await publish(kafka, requestTopic, { id, replyAddress: `${replyTopic}/${partition}/${token}`, inputs });
    const response = await awaitResponse(reader, { id, token });
    if (response === null) throw new Error(`no response to ${id} within ${TTL_MS + GRACE_MS} ms`);
    console.log(JSON.stringify(response));
    return response.status === "OK" ? 0 : 2;
  } finally {
    await reader.close();
  }
}

main().then(
  (code) => process.exit(code),
  (error) => {
    console.error(`${error.name}: ${error.message}`);
    process.exit(1);
  },
);
