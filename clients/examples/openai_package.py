"""The official ``openai`` package against a MegaContext server, as it is.

MEGACONTEXT_URL and MEGACONTEXT_API_KEY name the server and its key, if it has any.
"""

from __future__ import annotations

import os

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main() -> None:
    url = os.environ.get("MEGACONTEXT_URL", "http://127.0.0.1:8000")
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("MEGACONTEXT_API_KEY") or "unused")
    model = client.models.list().data[0].id

    # Without a session, send the growing list of messages as ever: the server reads only what is new.
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "The lamp needs oil every 4711 turns. Remember that."}
    ]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=16)
    print(f"assistant: {reply.choices[0].message.content}")
    messages.append({"role": "assistant", "content": reply.choices[0].message.content or ""})
    messages.append({"role": "user", "content": "When does the lamp need oil?"})

    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    print("assistant: ", end="")
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if (usage := chunk.usage) and (details := usage.prompt_tokens_details):
            print(f"\n{usage.prompt_tokens} tokens, {details.cached_tokens} of them known before")


if __name__ == "__main__":
    main()
