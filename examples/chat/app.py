"""A chat whose answers survive a reload of the page, a lost connection and a killed hub. There is no language model in it:
the answers are made of a few sentences, word by word, with a pause after each.

    wayside serve examples.chat.app:hub

Then open examples/chat/index.html in a browser, as a file; ``?hub=URL`` where the hub is elsewhere.

The handler goes on behind ``call.yielded`` when it is run again, which ``retries`` lets the hub do after a crash. A real
model would be asked to go on behind what it has said; one that cannot had better not be retried.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator

from wayside import Call, Hub

PAUSE_S = 0.06
"""Between two words, on average."""
SENTENCES = (
    "Every word is a record of the call's stream, and on disk before you see it.",
    "Load this page anew while I speak: it knows the key of the call and the offset of the last word, and goes on there.",
    "Kill the hub and start it again: the call is taken up, and I go on behind the words that are kept.",
    "Somebody else can read the same answer meanwhile, by polling, server-sent events or push, from its first word on.",
    "Press Stop, and the call is cancelled; close the page, and it is not.",
    "No word comes twice and none is left out, however often any of us is interrupted.",
)

hub = Hub()


@hub.service("chat.complete", retries=100, backoff=0.1)
async def complete(prompt: str, call: Call) -> AsyncIterator[str]:
    """Answers a prompt, word by word."""
    for word in pretend(prompt)[call.yielded :]:
        yield word
        await asyncio.sleep(random.uniform(0.2, 1.8) * PAUSE_S)


def pretend(prompt: str) -> list[str]:
    """The words of an answer: the same for the same prompt, so that another attempt goes on with the same text."""
    about = " ".join(prompt.split())[:80] or "nothing"
    sentences = random.Random(prompt).sample(SENTENCES, 4)
    text = f"You wrote “{about}”. I only pretend to be a language model, but the stream is real. {' '.join(sentences)}"
    return re.findall(r"\S+\s*", text)
