"""Runs openai-python: reads orders and writes results, each as a line of JSON.

A line is {"do", "url", "token", "model"}; the results are those of sdk_node.mjs, so that both have the same checks.
"""

import json
import sys

import openai


def responses(client, model):
    return whole(client.responses.create(model=model, input="Say something."))


def responses_stream(client, model):
    text, types, last = "", [], None
    for event in client.responses.create(model=model, input="Say something.", stream=True):
        types.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    return {**whole(last.response), "text": text, "events": types}


def responses_helper(client, model):
    with client.responses.stream(model=model, input="Say something.") as stream:
        types = [event.type for event in stream]
        return {**whole(stream.get_final_response()), "events": types}


def chat(client, model):
    completion = client.chat.completions.create(model=model, messages=MESSAGES)
    return {"id": completion.id, "text": completion.choices[0].message.content, **chat_usage(completion.usage)}


def chat_stream(client, model):
    text, usage, finish = "", None, None
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    return {"id": chunk.id, "text": text, "finish": finish, **chat_usage(usage)}


def models(client, model):
    return {"models": [model.id for model in client.models.list()]}


MESSAGES = [{"role": "user", "content": "Say something."}]


def whole(response):
    usage = response.usage
    return {
        "id": response.id,
        "status": response.status,
        "text": response.output_text,
        "input": usage.input_tokens,
        "cached": usage.input_tokens_details.cached_tokens,
        "output": usage.output_tokens,
        "reasoning": usage.output_tokens_details.reasoning_tokens,
    }


def chat_usage(usage):
    return {
        "input": usage.prompt_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
        "output": usage.completion_tokens,
        "reasoning": usage.completion_tokens_details.reasoning_tokens,
    }


DEEDS = {deed.__name__: deed for deed in [responses, responses_stream, responses_helper, chat, chat_stream, models]}


def carry_out(order):
    # Without retries: the checks count requests.
    client = openai.OpenAI(base_url=f"{order['url']}/v1", api_key=order["token"], max_retries=0, timeout=30)
    with client:
        try:
            return DEEDS[order["do"]](client, order["model"])
        except openai.APIStatusError as error:
            return {
                "error": type(error).__name__,
                "status": error.status_code,
                "type": error.type,
                "code": error.code,
                "retry_after": error.response.headers.get("retry-after"),
            }
        except Exception as error:
            return {"error": type(error).__name__, "message": str(error)}


for line in sys.stdin:
    print(json.dumps(carry_out(json.loads(line))), flush=True)
