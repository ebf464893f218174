// The official Node client, in whichever version is installed beside this file.

import OpenAI, { APIError, AzureOpenAI, toFile } from 'openai';

import {
  DRAWN, EXECUTED, FAULTS, MODEL, OWN, PIXEL, SCREEN, SERVERS, WEATHER,
  checkEvents, checkHeld, checkHidden, checkPicture, equal, main, screenshot, sleep, textOf,
} from './checks.mjs';

const clientOf = (run, options = {}) =>
  new OpenAI({ baseURL: `${run.url}/openai/v1/`, apiKey: run.key, fetch: run.fetch, ...options });

async function collected(stream, limit = Infinity) {
  const events = [];
  for await (const event of stream) {
    // The helper goes on filling in what it hands out.
    events.push(structuredClone(event));
    if (events.length === limit) break;
  }
  return events;
}

const textIn = (response) =>
  response.output
    .flatMap((item) => (item.type === 'message' ? item.content : []))
    .map((part) => part.text)
    .join('');

// One request in the mode of the run: the final response and its text.
async function ask(run, client, body) {
  body = { model: MODEL, ...body };
  let final;
  let text;
  if (run.mode === 'stream') {
    const events = await collected(await client.responses.create({ ...body, stream: true }));
    [final, text] = [checkEvents(events), textOf(events)];
    run.seen.events = events.length;
  } else if (run.mode === 'helper') {
    const stream = client.responses.stream(body);
    const events = await collected(stream);
    final = await stream.finalResponse();
    // Version 6 leaves the member output_text to plain calls.
    text = textIn(final);
    equal(checkEvents(events).id, final.id, 'id');
    equal(textOf(events), text, 'deltas');
    run.seen.events = events.length;
  } else {
    final = await client.responses.create(body);
    text = final.output_text;
  }
  checkHidden(final);
  run.keep(final, text);
  return [final, text];
}

async function held(run, client, denied = false) {
  const [final, text] = await ask(run, client, { input: run.transfer(), tools: [run.tool()] });
  checkHeld(final, text, { denied });
  return final;
}

const azureOptions = (run) => {
  const v1 = { baseURL: `${run.url}/openai/v1/`, apiVersion: 'preview' };
  return {
    key: { apiKey: run.key, ...v1 },
    token: { azureADTokenProvider: async () => run.key, ...v1 },
    endpoint: { apiKey: run.key, endpoint: run.url, apiVersion: '2025-04-01-preview' },
    deployment: {
      apiKey: run.key,
      baseURL: `${run.url}/openai/deployments/${MODEL}`,
      apiVersion: 'preview',
    },
  }[run.mode];
};

await main({
  async text(run) {
    const [, text] = await ask(run, clientOf(run), { input: `Hello from ${run.name}` });
    equal(text, `You said: Hello from ${run.name}`, 'text');
  },

  async approved(run) {
    await held(run, clientOf(run));
    equal(run.attempts, 1, 'attempts');
  },

  async denied(run) {
    await held(run, clientOf(run), true);
  },

  async credential(run) {
    const tools = [run.tool({ headers: OWN })];
    checkHeld(...(await ask(run, clientOf(run), { input: run.transfer(), tools })));
  },

  async wait(run) {
    const began = performance.now();
    await held(run, clientOf(run));
    equal(run.attempts, 1, 'attempts');
    run.seen.waited = (performance.now() - began) / 1000;
  },

  async azure(run) {
    const client = new AzureOpenAI({ fetch: run.fetch, ...azureOptions(run) });
    const final = await held(run, client);
    const again = await client.responses.retrieve(final.id);
    equal(textIn(again), textIn(final), 'retrieved');
  },

  async function(run) {
    const client = clientOf(run);
    const tools = [{ type: 'function', name: 'weather', parameters: WEATHER, strict: true }];
    const [first] = await ask(run, client, { input: 'function weather {"city": "Riga"}', tools });
    const call = first.output.at(-1);
    equal([call.type, call.name], ['function_call', 'weather'], 'call');
    const input = [{ type: 'function_call_output', call_id: call.call_id, output: 'sunny in Riga' }];
    const [, text] = await ask(run, client, { previous_response_id: first.id, input, tools });
    equal(text.includes('sunny in Riga'), true, text);
  },

  async image(run) {
    const client = clientOf(run);
    const content = [
      { type: 'input_text', text: 'What is in these images?' },
      { type: 'input_image', image_url: 'https://images.example/otter.jpg', detail: 'auto' },
      { type: 'input_image', image_url: PIXEL, detail: 'auto' },
    ];
    const [final, text] = await ask(run, client, { input: [{ role: 'user', content }] });
    equal(text.includes('What is in these images?'), true, text);
    const listing = await client.responses.inputItems.list(final.id);
    const parts = listing.data[0].content.map((part) => part.type);
    equal(parts, ['input_text', 'input_image', 'input_image'], 'parts');
  },

  async chain(run) {
    const client = clientOf(run);
    const question = { role: 'user', content: run.transfer() };
    const tools = [run.tool()];
    const first = await client.responses.create({ model: MODEL, input: [question], tools });
    const byId = { input: 'And by id?', previous_response_id: first.id };
    const [final, text] = await ask(run, client, byId);
    equal(text.includes('And by id?'), true, text);
    equal(final.previous_response_id, first.id, 'previous');
    const input = [question, ...first.output, { role: 'user', content: 'And with everything?' }];
    const [, last] = await ask(run, client, { input, tools });
    equal(last.includes('And with everything?'), true, last);
  },

  async reasoning(run) {
    const client = clientOf(run);
    const body = {
      model: 'o4-mini',
      reasoning: { effort: 'medium' },
      store: false,
      include: ['reasoning.encrypted_content'],
      tools: [run.tool()],
    };
    const question = { role: 'user', content: run.transfer() };
    const first = await client.responses.create({ ...body, input: [question] });
    const thoughts = first.output.filter((item) => item.type === 'reasoning');
    equal(thoughts.length > 0, true, 'thoughts');
    equal(thoughts.every((item) => item.encrypted_content), true, 'encrypted');
    const input = [question, ...first.output, { role: 'user', content: 'And then?' }];
    const [, text] = await ask(run, client, { ...body, input });
    equal(text.includes('And then?'), true, text);
  },

  async stored(run) {
    const client = clientOf(run);
    const [final, text] = await ask(run, client, { input: 'Keep this' });
    const again = await client.responses.retrieve(final.id);
    equal([again.id, again.output_text], [final.id, text], 'retrieved');
    const listing = await client.responses.inputItems.list(final.id);
    equal(listing.data[0].content[0].text, 'Keep this', 'input');
    await client.responses.delete(final.id);
    const gone = await client.responses.retrieve(final.id).catch((error) => error);
    equal(gone.status, 404, 'status after deletion');
  },

  async background(run) {
    const client = clientOf(run);
    const body = { model: MODEL, input: run.transfer(), tools: [run.tool()], background: true };
    let response = await client.responses.create(body);
    const statuses = [response.status];
    while (['queued', 'in_progress'].includes(response.status)) {
      await sleep(0.2);
      response = await client.responses.retrieve(response.id);
      checkHidden(response);
      statuses.push(response.status);
    }
    run.seen.statuses = statuses;
    checkHeld(response, response.output_text);
    run.keep(response, response.output_text);
  },

  async cancel(run) {
    const client = clientOf(run);
    const body = { model: MODEL, input: run.transfer(), tools: [run.tool()], background: true };
    let response = await client.responses.create(body);
    // Long enough for the call to be held.
    await sleep(4);
    const statuses = [(await client.responses.retrieve(response.id)).status];
    for (let time = 0; time < 2; time += 1) {
      response = await client.responses.cancel(response.id);
      statuses.push(response.status);
    }
    run.keep(response, '');
    run.seen.statuses = statuses;
    equal(statuses[0], 'in_progress', 'before');
  },

  async resume(run) {
    const client = clientOf(run);
    const body = { model: MODEL, input: run.transfer(), tools: [run.tool()], background: true };
    const left = await client.responses.create({ ...body, stream: true });
    const seen = await collected(left, 4);
    const id = seen[0].response.id;
    let final;
    if (run.mode === 'helper') {
      const stream = client.responses.stream({ response_id: id, starting_after: 3 });
      const rest = await collected(stream);
      final = await stream.finalResponse();
      equal(rest.every((event) => event.sequence_number > 3), true, 'numbers');
    } else {
      const again = await client.responses.retrieve(id, { stream: true, starting_after: 3 });
      final = checkEvents([...seen, ...(await collected(again))]);
    }
    equal(final.id, id, 'id');
    const text = textIn(final);
    checkHeld(final, text);
    run.keep(final, text);
  },

  async drawing(run) {
    const client = clientOf(run, { defaultHeaders: DRAWN });
    const body = { model: MODEL, input: `Draw an otter for ${run.name}` };
    const tool = { type: 'image_generation' };
    let final;
    if (run.mode === 'stream') {
      const tools = [{ ...tool, partial_images: 2 }];
      const events = await collected(await client.responses.create({ ...body, tools, stream: true }));
      const kind = 'response.image_generation_call.partial_image';
      const partial = events.filter((event) => event.type === kind);
      equal(partial.map((event) => event.partial_image_index), [0, 1], 'partial images');
      partial.forEach((event) => checkPicture(event.partial_image_b64));
      final = checkEvents(events);
    } else {
      final = await client.responses.create({ ...body, tools: [tool] });
    }
    checkPicture(final.output.find((item) => item.type === 'image_generation_call').result);
    run.keep(final, '');
  },

  async computer(run) {
    const client = clientOf(run);
    const tools = [SCREEN, run.tool()];
    const body = { model: 'computer-use-preview', truncation: 'auto', tools };
    const input = `Use the computer and ${run.transfer()}`;
    const first = await client.responses.create({ ...body, input });
    checkHidden(first);
    const call = first.output.at(-1);
    equal([call.type, call.action.type], ['computer_call', 'screenshot'], 'call');
    const next = { previous_response_id: first.id, input: [screenshot(call)] };
    const answer = await client.responses.create({ ...body, ...next });
    checkHidden(answer);
    run.keep(answer, answer.output_text);
    equal(run.seen.items.includes('mcp_call'), true, 'items');
    equal(answer.output_text.includes('screenshot'), true, answer.output_text);
  },

  async conversation(run) {
    const client = clientOf(run);
    const { id } = await client.conversations.create({ metadata: { case: run.name } });
    const tools = [run.tool()];
    const [final, text] = await ask(run, client, { input: run.transfer(), tools, conversation: id });
    checkHeld(final, text);
    const kinds = [];
    for await (const item of client.conversations.items.list(id, { order: 'asc' })) kinds.push(item.type);
    equal(kinds, ['message', 'mcp_list_tools', 'mcp_call', 'message'], 'items');
    const [, again] = await ask(run, client, { input: 'Thank you', conversation: id });
    equal(again, 'You said: Thank you', 'text');
    equal((await client.conversations.delete(id)).deleted, true, 'deleted');
  },

  async wish(run) {
    const client = clientOf(run, { defaultHeaders: { 'Gatepass-Wait': 'return' } });
    const body = { model: MODEL, tools: [run.tool()] };
    const first = await client.responses.create({ ...body, input: run.transfer() });
    const request = first.output.at(-1);
    equal(request.type, 'mcp_approval_request', 'last item');
    const input = [{ type: 'mcp_approval_response', approval_request_id: request.id, approve: false }];
    const second = await client.responses.create({ ...body, input, previous_response_id: first.id });
    run.keep(second, second.output_text);
    equal(second.output_text.startsWith(EXECUTED), true, second.output_text);
  },

  async files(run) {
    const client = clientOf(run, { defaultHeaders: DRAWN });
    const upload = await toFile(Buffer.from(run.name), 'plain.png');
    const file = await client.files.create({ file: upload, purpose: 'vision' });
    const names = [];
    for await (const one of client.files.list({ purpose: 'vision' })) names.push(one.id);
    equal(names.includes(file.id), true, 'listed');
    equal((await client.files.retrieve(file.id)).bytes, run.name.length, 'bytes');
    equal(await (await client.files.content(file.id)).text(), run.name, 'content');
    const part = { type: 'input_image', file_id: file.id, detail: 'auto' };
    await ask(run, client, { input: [{ role: 'user', content: [part] }] });
    equal((await client.files.delete(file.id)).deleted, true, 'deleted');
    const gone = await client.files.retrieve(file.id).catch((error) => error);
    equal(gone.status, 404, 'status after deletion');
  },

  async chat(run) {
    const client = clientOf(run);
    const text = `Hello from ${run.name}`;
    const body = { model: MODEL, messages: [{ role: 'user', content: text }] };
    let said = '';
    if (run.mode === 'stream') {
      const stream = await client.chat.completions.create({ ...body, stream: true });
      for await (const chunk of stream) said += chunk.choices[0]?.delta.content ?? '';
    } else {
      said = (await client.chat.completions.create(body)).choices[0].message.content;
    }
    equal(said, `You said: ${text}`, 'text');
  },

  async embeddings(run) {
    const body = { model: 'text-embedding-3-small', input: ['Hello', 'Good day'] };
    const { data } = await clientOf(run).embeddings.create(body);
    equal(data.length, 2, 'vectors');
    equal(data[0].embedding.length === data[1].embedding.length, true, 'lengths');
    equal(JSON.stringify(data[0].embedding) !== JSON.stringify(data[1].embedding), true, 'values');
  },

  async models(run) {
    const client = clientOf(run);
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    equal((await client.models.retrieve(names[0])).id, names[0], 'model');
  },

  async unknown(run) {
    const input = `Hello from ${run.name} quirk: unknown-event`;
    const [final] = await ask(run, clientOf(run), { input });
    equal(final.status, 'completed', 'status');
  },

  async retry(run) {
    await held(run, clientOf(run, { apiKey: run.strict, timeout: 5000 }));
  },

  async refusal(run) {
    const defaultHeaders = run.mode === '400' ? { 'api-key': run.key } : {};
    const client = clientOf(run, { ...run.refused, defaultHeaders });
    const tools = [run.tool(SERVERS[run.mode])];
    const body = { model: MODEL, input: run.transfer(FAULTS[run.mode]), tools };
    const error = await client.responses.create(body).catch((problem) => problem);
    if (!(error instanceof APIError)) throw new Error(`not refused: ${JSON.stringify(error)}`);
    Object.assign(run.seen, { statuses: [error.status], code: error.code });
  },
});
