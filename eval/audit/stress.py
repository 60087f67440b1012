"""Documents that have broken somebody's tokenizer, a few kilobytes, each with a name.

Valid text first; what is no UTF-8 is last, since the challenge has none of it.
"""

CASE = "case"

TEXTS = {
    "words": "The quick brown fox jumps over the lazy dog.",
    CASE: "The NASA of OpenAI; iPhone, McDonald, STRASSE, \u00c9cole, \u039f\u0394\u039f\u03a3.",
    "newlines": "one\ntwo\n\nthree\r\nfour\rfive\x85six\u2028seven\u2029eight\n",
    "tabs": "a\tb\t\tc\n\tindented\n\t\ttwice",
    "spaces": "two  spaces,   three; ends with two  ",
    "leading space": " one space first",
    "leading spaces": "    four spaces first",
    "only spaces": "     ",
    "other spaces": "a\u00a0b\u2009c\u3000d\u202fe\u1680f\u200bg",
    "nothing": "",
    "one letter": "A",
    "digits": "0 1 12 123 1234567890 3.14159 1,000,000 \u0661\u0662\u0663 \u4e00\u4e8c",
    "compatibility forms": "\ufb01 \ufb03 \u00bd \u2460 \u2122 \u210c \u00aa x\u00b2 \uff26\uff35",
    "combining marks": "e\u0301 a\u030a\u0323 o\u0308 Z\u0361\u0323\u0354 \ufb01\u0301",
    "composed and decomposed": "caf\u00e9 cafe\u0301 \u212b \u00c5 A\u030a",
    "jamo": "\ud55c\uae00 \u1112\u1161\u11ab \u3131",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea "
    "\U0001f44d\U0001f3fd \u2764\ufe0f \u0031\ufe0f\u20e3",
    "right to left": "\u05e9\u05c1\u05dc\u05d5\u05b9\u05dd \u0645\u0631\u062d\u0628\u0627 "
    "\u202eabc\u202c \u200fx\u200e",
    "scripts": "\u65e5\u672c\u8a9e \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 "
    "\u10e5\u10d0\u10e0 \u13e3\u13b3\u13a9 \U00010330\U00010342",
    "quotes and dashes": "\u201cquoted\u201d \u2018so\u2019 \u2013 \u2014 \u2026 don't",
    "NUL": "a\0b\0\0c",
    "controls": "".join(map(chr, (*range(1, 9), *range(14, 32), 127, *range(128, 133)))),
    "byte order mark": "\ufeffstart, \ufeffmiddle",
    "joiners": "zero\u200cwidth\u200dand\u2060soft\u00adhyphen",
    "the space's stand-in": "\u2581one\u2581two \u2581 three\u2581\u2581",
    "the unknown's stand-in": "\u2047 \u2047\u2047 \ufffd\ufffd",
    "special names": "<unk> <s> </s> <pad> <0x41> <0xFF> <|endoftext|> [UNK] [CLS] ##ing",
    "case marks": "\ue001a \ue002bc \ue003d \ue004 \ue004\ue001",
    "private and last": "\ue000 \uf8ff \ufdd0 \uffff \U0010ffff",
    "no spaces": "Donaudampfschifffahrtsgesellschaftskapit\u00e4n" * 8,
    "repeats": "a" * 300 + "!" * 200 + " -" * 100,
    "code": 'def f(x):\n    if x > 0:\n        return {"a": [1, 2]}\n\n\n#\tend\n',
    "address": "https://example.com/a_b-c?d=%20e&f=g#h user@example.com C:\\dir\\file",
}

BYTES = {
    "no UTF-8": b"text \xff\xfe text",
    "cut character": b"caf\xc3",
    "stray continuation": b"\x80\xbf mid \xc3\x28 end",
    "surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\x80 \xe0\x80\xaf",
    "beyond the last": b"\xf4\x90\x80\x80",
    "every byte": bytes(range(256)),
}


def stress_documents() -> dict[str, bytes]:
    """All of them by name."""
    return {**{name: text.encode() for name, text in TEXTS.items()}, **BYTES}
