// Vercel's AI SDK with its Azure provider, whose base URL is the gateway's.

import { createAzure } from '@ai-sdk/azure';
import { openai } from '@ai-sdk/openai';
import {
  APICallError, RetryError, embedMany, generateText, jsonSchema, stepCountIs, streamText, tool,
} from 'ai';

import {
  DRAWN, FAULTS, MODEL, OWN, PIXEL, SERVERS, WEATHER,
  checkHeldText, checkHidden, checkPicture, equal, main,
} from './checks.mjs';

const azureOf = (run, options = {}) =>
  createAzure({ baseURL: `${run.url}/openai/v1`, apiKey: run.key, fetch: run.fetch, ...options });
const modelOf = (run, options) => azureOf(run, options)(MODEL);

// The bank, as an app that would rather not be asked declares it.
const bank = (run, changes = {}) =>
  openai.tools.mcp({
    serverLabel: changes.server_label ?? 'bank',
    serverUrl: changes.server_url ?? `${run.bank}/mcp`,
    requireApproval: 'never',
    ...(changes.headers && { headers: changes.headers }),
  });

async function finished(run, options) {
  if (run.mode !== 'stream') return generateText(options);
  const problems = [];
  const result = streamText({ ...options, onError: ({ error }) => problems.push(error) });
  const parts = [];
  for await (const part of result.fullStream) parts.push(part);
  if (problems.length) throw problems[0];
  checkHidden(parts);
  const [first, last] = [parts[0].type, parts.at(-1).type];
  equal([first, last], ['start', 'finish'], 'ends of the stream');
  const deltas = parts.filter((part) => part.type === 'text-delta').map((part) => part.text);
  const text = await result.text;
  equal(deltas.join(''), text, 'deltas');
  run.seen.events = parts.length;
  return {
    text,
    content: await result.content,
    response: await result.response,
    finishReason: await result.finishReason,
    providerMetadata: await result.providerMetadata,
    steps: await result.steps,
  };
}

// One request in the mode of the run.
async function ask(run, options) {
  const result = await finished(run, { model: modelOf(run), ...options });
  checkHidden(result.content);
  equal(result.finishReason, 'stop', 'reason to finish');
  const items = result.content.map((part) => part.type);
  Object.assign(run.seen, { id: result.response.id, text: result.text, items });
  return result;
}

async function held(run, options = {}) {
  const tools = { bank: bank(run) };
  const result = await ask(run, { prompt: run.transfer(), tools, ...options });
  equal(result.steps.length, 1, 'turns');
  checkHeldText(result.text, run.capability === 'denied');
  return result;
}

// Node's own timer of 300 s for the first header, made short.
const impatient = (run) => async (address, options) => {
  run.attempts += 1;
  const signal = AbortSignal.timeout(5000);
  return fetch(address, { ...options, signal }).catch((cause) => {
    throw new TypeError('fetch failed', { cause });
  });
};

await main({
  async text(run) {
    const { text } = await ask(run, { prompt: `Hello from ${run.name}` });
    equal(text, `You said: Hello from ${run.name}`, 'text');
  },

  async approved(run) {
    await held(run);
    equal(run.attempts, 1, 'attempts');
  },

  async denied(run) {
    await held(run);
  },

  async credential(run) {
    await held(run, { tools: { bank: bank(run, { headers: OWN }) } });
  },

  async wait(run) {
    const began = performance.now();
    await held(run);
    equal(run.attempts, 1, 'attempts');
    run.seen.waited = (performance.now() - began) / 1000;
  },

  async function(run) {
    const weather = tool({
      description: 'The weather in a city.',
      inputSchema: jsonSchema(WEATHER),
      execute: async ({ city }) => `sunny in ${city}`,
    });
    const prompt = 'function weather {"city": "Riga"}';
    const { text } = await ask(run, { prompt, tools: { weather }, stopWhen: stepCountIs(3) });
    equal(text.includes('sunny in Riga'), true, text);
  },

  async image(run) {
    const content = [
      { type: 'text', text: 'What is in these images?' },
      { type: 'image', image: new URL('https://images.example/otter.jpg') },
      { type: 'image', image: PIXEL },
    ];
    const { text } = await ask(run, { messages: [{ role: 'user', content }] });
    equal(text.includes('What is in these images?'), true, text);
  },

  async chain(run) {
    const question = { role: 'user', content: run.transfer() };
    const tools = { bank: bank(run) };
    const first = await generateText({ model: modelOf(run), messages: [question], tools });
    const previousResponseId = first.providerMetadata.azure.responseId;
    const { text } = await ask(run, {
      prompt: 'And by id?',
      providerOptions: { azure: { previousResponseId } },
    });
    equal(text.includes('And by id?'), true, text);
    const again = { role: 'user', content: 'And with everything?' };
    const messages = [question, ...first.response.messages, again];
    const whole = await ask(run, { messages, tools });
    equal(whole.text.includes('And with everything?'), true, whole.text);
  },

  async drawing(run) {
    const tools = { image_generation: openai.tools.imageGeneration({}) };
    const prompt = `Draw an otter for ${run.name}`;
    const result = await ask(run, { prompt, tools, headers: DRAWN });
    const drawn = result.content.find((part) => part.type === 'tool-result');
    checkPicture(drawn.output.result);
  },

  async chat(run) {
    const prompt = `Hello from ${run.name}`;
    const { text } = await ask(run, { prompt, model: azureOf(run).chat(MODEL) });
    equal(text, `You said: ${prompt}`, 'text');
  },

  async embeddings(run) {
    const model = azureOf(run).textEmbeddingModel('text-embedding-3-small');
    const { embeddings } = await embedMany({ model, values: ['Hello', 'Good day'] });
    equal(embeddings.length, 2, 'vectors');
    equal(JSON.stringify(embeddings[0]) !== JSON.stringify(embeddings[1]), true, 'values');
  },

  async unknown(run) {
    const { text } = await ask(run, { prompt: `Hello from ${run.name} quirk: unknown-event` });
    equal(text.includes('Hello from'), true, text);
  },

  async retry(run) {
    const model = modelOf(run, { apiKey: run.strict, fetch: impatient(run) });
    await held(run, { model, maxRetries: 6 }); // a busy machine takes longer than two of them
  },

  async refusal(run) {
    const headers = run.mode === '400' ? { authorization: `Bearer ${run.key}` } : {};
    const model = modelOf(run, { ...run.refused, headers });
    const tools = { bank: bank(run, SERVERS[run.mode]) };
    const prompt = run.transfer(FAULTS[run.mode]);
    const problem = await generateText({ model, prompt, tools }).catch((error) => error);
    const error = RetryError.isInstance(problem) ? problem.lastError : problem;
    if (!APICallError.isInstance(error)) throw new Error(`not refused: ${problem.text ?? problem}`);
    Object.assign(run.seen, { statuses: [error.statusCode], code: error.data?.error.code });
  },
});
