"""Additional training phrasings for more variety; the unseen evaluation phrasings stay unseen."""

from __future__ import annotations

BATTERY = (
    "my {p} runs out of power before lunch",
    "my {p} dies after an hour of use",
    "my {p} only works while it is plugged in",
    "I never get through a day with my {p} on one charge",
    "charging my {p} takes all night and is gone in two hours",
    "the battery indicator of my {p} drops by the minute",
    "I carry a power bank everywhere because of my {p}",
    "my {p} is flat every evening",
)
SCREEN = (
    "half of the picture on my {p} is black",
    "I dropped my {p} and now its glass is broken",
    "the picture on my {p} is far too dark",
    "colours on my {p} are all wrong",
    "my {p} shows nothing but stripes",
    "a corner of the display of my {p} is chipped",
    "the image on my {p} jumps and flashes",
    "I can hardly read anything on my {p}, the picture is so dim",
)
SOUND = (
    "I hear nothing from my {p}",
    "voices on my {p} are hardly audible",
    "music from my {p} sounds like a broken radio",
    "one side of my {p} is mute",
    "there is a constant noise in my {p}",
    "songs on my {p} rattle",
    "my {p} is so quiet that I cannot follow a call",
    "my {p} hums and whistles all the time",
)
CONNECTION = (
    "my {p} has no internet",
    "my {p} and the network do not see each other",
    "I cannot get my {p} online",
    "my {p} refuses every wifi password",
    "the signal on my {p} comes and goes",
    "pages on my {p} time out",
    "my {p} is disconnected every evening",
    "bluetooth on my {p} finds nothing",
)
POWER = (
    "nothing happens when I press the button of my {p}",
    "my {p} stays dark whatever I do",
    "my {p} crashes and goes off",
    "my {p} restarts all by itself",
    "my {p} is dead as a stone",
    "I cannot boot my {p}",
    "my {p} turned off last night and stayed off",
    "my {p} does not even light up",
)
DELIVERY = (
    "my {p} never came",
    "the postman left without giving me my {p}",
    "the tracking of my {p} has not moved for ten days",
    "you promised my {p} for Monday and it is not here",
    "my {p} went to the wrong address",
    "somebody stole the package with my {p} before I got it",
    "I ordered my {p} a month ago and have seen nothing of it",
    "an empty carton came in place of my {p}",
)
REFUND = (
    "how do I get the price of my {p} back",
    "you still owe me the money for my {p}",
    "I cancelled my {p} but you took the payment",
    "the amount on the bill for my {p} is too high",
    "I gave my {p} back and my account shows nothing",
    "please return what I paid for my {p}",
    "my card was debited two times for my {p}",
    "I paid too much for my {p} and want the difference",
)
NOTHING = (
    "I would like some information about my {p}",
    "there is something I want to ask about my {p}",
    "could you tell me more about my {p}",
    "I have a few words to say about my {p}",
    "please send me somebody who knows about my {p}",
)

HIGH = (
    "this cannot wait",
    "I need it fixed within the hour",
    "it is an emergency",
    "do something immediately",
    "I have to have this by the end of the day",
    "as fast as you can, please",
    "it must work again this afternoon",
)
NORMAL = (
    "some time this week would do",
    "let me know within two or three days",
    "before Sunday is fine",
    "a solution by the end of the week is fine",
    "an answer in a day or two is enough",
    "Thursday or Friday would be good",
)
LOW = (
    "I am in no rush",
    "any time will do",
    "it does not matter when",
    "an answer in a few weeks is fine",
    "let it wait until you are less busy",
    "no need to hurry",
    "some day this year is soon enough",
)

DISTRACTORS = (
    "{other} from next door said I should ask you",
    "the receipt has the number {n}",
    "I am very happy with my {q}",
    "my {q} never had a problem",
    "it rains here today",
    "{other} uses the same model",
    "my customer id is {n}",
    "I bought a {q} from you as well",
    "my brother {other} gave it to me",
    "we have sunshine at last",
)
OPENINGS = (
    "This is {name} writing.",
    "{name} is my name.",
    "Greetings from {name}.",
    "You know me, I am {name}.",
    "Here is {name} again.",
)
CLOSINGS = ("Sincerely,\n{name}", "Kind regards,\n{name}", "Bye,\n{name}", "Yours truly,\n{name}", "from {name}")
GREETINGS = ("Good afternoon.", "Dear team!", "Hey.", "To whom it may concern.")

PRODUCTS = {
    "laptop": ("laptop computer", "portable PC"),
    "phone": ("mobile phone", "smartphone"),
    "tablet": ("tablet computer",),
    "watch": ("smart watch", "wrist watch"),
    "camera": ("photo camera", "compact camera"),
    "headset": ("wireless headset", "headset with microphone"),
    "speaker": ("bluetooth speaker", "speaker box"),
    "router": ("internet router", "wireless router"),
}
UNNAMED = ("thing", "purchase", "appliance", "order")
