"""What customers of the fictional electronics shop say: the closed vocabulary of the tickets and its phrasings.

Each table has a `known` and an `unseen` column of phrasings. Training and the part `known` use the first, with `varied`
the `further` ones too; the part `unseen` uses the second. `{p}` is the product as the customer calls it, `{other}` another person, `{q}` another product.
"""

from __future__ import annotations

from typing import NamedTuple

from sft.data.tickets import further


class Phrases(NamedTuple):
    """Ways to say one thing: for training, for the evaluation part `unseen`, and additional ones for training."""

    known: tuple[str, ...]
    unseen: tuple[str, ...]
    further: tuple[str, ...] = ()


PRODUCTS: dict[str, Phrases] = {
    "laptop": Phrases(("laptop", "notebook"), ("laptop", "portable computer"), further.PRODUCTS["laptop"]),
    "phone": Phrases(("phone", "mobile"), ("phone", "cell phone"), further.PRODUCTS["phone"]),
    "tablet": Phrases(("tablet",), ("tablet",), further.PRODUCTS["tablet"]),
    "watch": Phrases(("watch", "smartwatch"), ("watch", "wristwatch"), further.PRODUCTS["watch"]),
    "camera": Phrases(("camera",), ("camera", "digital camera"), further.PRODUCTS["camera"]),
    "headset": Phrases(("headset",), ("headset", "bluetooth headset"), further.PRODUCTS["headset"]),
    "speaker": Phrases(("speaker",), ("speaker", "loudspeaker"), further.PRODUCTS["speaker"]),
    "router": Phrases(("router",), ("router", "wifi router"), further.PRODUCTS["router"]),
}

# Words for an unspecified product: the record's product is null.
UNNAMED = Phrases(("device", "gadget", "item", "unit"), ("machine", "product"), further.UNNAMED)

# Which products can have an issue; every other issue (and none at all) fits all of them.
FITS: dict[str | None, tuple[str, ...]] = {
    "battery": ("laptop", "phone", "tablet", "watch", "camera", "headset", "speaker"),
    "screen": ("laptop", "phone", "tablet", "watch", "camera"),
    "sound": ("laptop", "phone", "tablet", "headset", "speaker"),
    "connection": ("laptop", "phone", "tablet", "watch", "headset", "speaker", "router"),
}

ISSUES: dict[str | None, Phrases] = {
    "battery": Phrases(
        (
            "the battery of my {p} is empty by noon",
            "my {p} does not hold a charge",
            "I have to charge my {p} three times a day",
            "my {p}'s battery drains overnight",
        ),
        (
            "my {p} hardly lasts a morning without its charger",
            "a full charge gets my {p} through one film, no more",
            "my {p} loses all its charge while I sleep",
        ),
        further.BATTERY,
    ),
    "screen": Phrases(
        (
            "the screen of my {p} is cracked",
            "my {p}'s display flickers",
            "there are lines across the screen of my {p}",
            "the touch screen of my {p} does not react",
        ),
        (
            "the glass on the front of my {p} has shattered",
            "everything on my {p} looks washed out and blurry",
            "the panel of my {p} keeps blinking",
        ),
        further.SCREEN,
    ),
    "sound": Phrases(
        (
            "my {p} makes no sound",
            "the sound of my {p} crackles",
            "the volume of my {p} is far too low",
            "my {p} buzzes when I play music",
        ),
        (
            "my {p} has gone silent",
            "there is a hiss in every song on my {p}",
            "the audio of my {p} is distorted",
        ),
        further.SOUND,
    ),
    "connection": Phrases(
        (
            "my {p} keeps losing the wifi",
            "my {p} does not pair over bluetooth",
            "my {p} cannot find the network",
            "the connection of my {p} drops every few minutes",
        ),
        (
            "my {p} goes offline again and again",
            "no web page ever loads over my {p}",
            "my {p} never shows up in the list of networks",
        ),
        further.CONNECTION,
    ),
    "power": Phrases(
        (
            "my {p} does not turn on",
            "my {p} is completely dead",
            "my {p} switches itself off",
            "my {p} won't start",
        ),
        (
            "no light comes on when I plug in my {p}",
            "my {p} will not wake up any more",
            "my {p} shuts down without warning",
        ),
        further.POWER,
    ),
    "delivery": Phrases(
        (
            "my {p} has not arrived",
            "the courier lost my {p}",
            "I am still waiting for my {p}",
            "the parcel with my {p} is late",
        ),
        (
            "nobody has brought my {p} yet",
            "the box was empty, my {p} was not in it",
            "my {p} should have come by post a week ago",
        ),
        further.DELIVERY,
    ),
    "refund": Phrases(
        (
            "I want my money back for my {p}",
            "please refund my {p}",
            "I returned my {p} and was not paid back",
            "I was charged twice for my {p}",
        ),
        (
            "kindly reimburse me for my {p}",
            "I sent my {p} back and still wait for the payment",
            "the bill for my {p} is wrong",
        ),
        further.REFUND,
    ),
    None: Phrases(
        ("I have a question about my {p}", "please call me about my {p}", "I need help with my {p}"),
        ("I am writing about my {p}", "can somebody advise me on my {p}"),
        further.NOTHING,
    ),
}

URGENCIES: dict[str, Phrases] = {
    "high": Phrases(
        ("this is urgent", "I need it solved today", "I need an answer right now", "please hurry"),
        ("every minute counts", "I must have it working by tonight", "help me at once"),
        further.HIGH,
    ),
    "normal": Phrases(
        ("this week is fine", "please answer in the next few days", "I need it by Friday"),
        ("please look at it before the weekend", "a reply within days is good enough"),
        further.NORMAL,
    ),
    "low": Phrases(
        ("there is no hurry", "take your time", "whenever you have time", "this is not urgent"),
        ("it can wait", "next month is early enough"),
        further.LOW,
    ),
}

# Irrelevant sentences.
DISTRACTORS = Phrases(
    (
        "I have been a customer for years",
        "my sister {other} has the same one",
        "I bought it in May",
        "my {q} works well",
        "the order number is {n}",
        "{other} in your shop sold it to me",
        "it was a gift",
        "I like your shop",
    ),
    (
        "my neighbour {other} told me to write",
        "I also own a {q}, which is fine",
        "the invoice says {n}",
        "the weather is lovely here",
    ),
    further.DISTRACTORS,
)

OPENINGS = Phrases(
    ("Hello, {name} here.", "Hi, this is {name}.", "My name is {name}.", "I am {name}.", "Hello, I'm {name}."),
    ("{name} speaking.", "You are reading a note from {name}.", "Good day, {name} writes to you."),
    further.OPENINGS,
)
CLOSINGS = Phrases(
    ("Thanks,\n{name}", "Regards,\n{name}", "Best,\n{name}", "Yours,\n{name}", "- {name}"),
    ("Cheers,\n{name}", "Signed,\n{name}", "Take care,\n{name}"),
    further.CLOSINGS,
)
GREETINGS = Phrases(
    ("Hello.", "Hi there.", "Good morning.", "Hello!", ""), ("Good evening.", "Dear shop!", ""), further.GREETINGS
)
