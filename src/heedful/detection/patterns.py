"""The regular expressions that tell material from the writer's own words; each with a line on what it stands for."""

from __future__ import annotations

import re

# Tags around a writer's own instructions; every other pair of tags encloses material.
OWN_TAGS = r"instructions?|rules?|requirements?|constraints?|guidelines?|format|output_format|task|request|heed"
OWN_TAG = re.compile(rf"</?(?:{OWN_TAGS})>", re.I)

# What encloses material, whatever stands around it, and is found by one pattern.
BLOCKS = (
    ("quotation", re.compile(r'"""(?=.).+?(?:"""|\Z)|\'\'\'(?=.).+?(?:\'\'\'|\Z)', re.S)),
    ("code", re.compile(r"```[^`\n]+```")),
    ("comment", re.compile(r"<!--.*?(?:-->|\Z)", re.S)),
    ("block quotation", re.compile(r"(?:^[ \t]*>[^\n]*(?:\n|\Z))+", re.M)),
)
FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})([^\n]*)$", re.M)
OPENING_TAG = re.compile(rf"(?<!<)<(?!(?:{OWN_TAGS})\b)([a-z][\w:-]*)(?:\s[^<>\n]*)?>", re.I)
CLOSING_TAG = re.compile(r"</([a-z][\w:-]*)\s*>", re.I)
OPENING_LABEL = re.compile(r"^\[([a-z][\w ]{2,20})\][ \t]*$", re.M | re.I)
CLOSING_LABEL = re.compile(r"^\[/([a-z][\w ]{2,20})\]", re.M | re.I)
BEGIN = re.compile(r"^[^\w\n]{0,12}(?:BEGIN|START)\b[^\n]{0,60}$", re.M)
END = re.compile(r"^[^\w\n]{0,12}END\b[^\n]{0,60}$", re.M)
DELIMITER = re.compile(r"^([-=_#~+]{3,}|<{3,}|>{3,}|\|{3,}|\${3,}|%{3,})[ \t]*$", re.M)
# Tags that set a piece of a page: a text that begins with such a pair goes on behind it.
_MARKUP = (
    "a b i p u em h1 h2 h3 h4 h5 h6 br hr li ol ul dl dt dd td th tr div pre sub sup span font code head main small"
    " strong title table thead tbody label header footer section center blockquote"
)
MARKUP = frozenset(_MARKUP.split())

# Quotation marks: where one opens; for each, what stops the quotation, and which of the stops close it.
OPENING_QUOTE = re.compile(r"[“”„«「『《`]|(?<![\w\"])\"(?=\S)|(?<!\w)['‘](?=\S)")
QUOTE_STOPS = {
    "“": (re.compile("[“”]"), "”"),
    '“…"': (re.compile('[“”"]'), '"'),
    "”": (re.compile('[“”"]'), '"'),
    "„": (re.compile('[“”"]'), '“”"'),
    "«": (re.compile("»"), "»"),
    "「": (re.compile("」"), "」"),
    "『": (re.compile("』"), "』"),
    "《": (re.compile("》"), "》"),
    '"': (re.compile('"'), '"'),
    "'": (re.compile(r"'(?!\w)|\n"), "'"),
    "‘": (re.compile(r"’(?!\w)|\n"), "’"),
    "`": (re.compile(r"`|\n"), "`"),
}

_NOUN = (
    r"(?:text|passage|article|paragraphs?|documents?|docs?|(?:e-?)?mails?|messages?|reviews?|letter|stor(?:y|ies)|poem|posts?"
    r"|tweets?|comments?|sentences?|statements?|quotes?|quotations?|snippets?|code|script|function|transcript|chat|logs?"
    r"|conversation|dialog(?:ue)?|abstract|excerpts?|extracts?|speech|lyrics|notes?|page|web ?page|website|contents?"
    r"|input|data|table|report|blog|headlines?|pitch|paper|tickets?|prompts?|threads?|memo|contract|clause|recipe|ad|lines?"
    r"|advert(?:isement)?|captions?|descriptions?|transcription|minutes|essay|draft|resume|cv|joke|string|context|source"
    r"|original|policy|feedback|complaint|slogan|readme|file|config(?:uration)?|manual|examples?|announcement|leaflet"
    r"|label|sign|listing|bio|strings|invoice|receipt|minutes|subtitles?|voicemail|scene|screenplay|chapter|verse|song|entry|proverb|paste"
    r"|postings?|notices?|flyer|leaflet|brochure|circular|bulletin|handout|worksheet|checklist|poster|banner|petition"
    r"|questionnaire|survey|specification|agreement|lease|statutes?|laws?|paragraphs?|diary|journal|column|editorial"
    r"|interview|lecture|sermon|toast|synopsis|testimonial|press release|newsletter)"
)
_WORK = (
    r"(?:summari[sz]e|sum up|translate|paraphrase|re-?write|rephrase|reword|proof-?read|edit|correct|fix|critique"
    r"|critici[sz]e|analy[sz]e|classify|review|improve|shorten|condense|expand|elaborate on|transcribe|simplify|polish"
    r"|evaluate|grade|rate|debug|refactor|continue|complete|tl;?dr|categori[sz]e|interpret|comment on|respond to"
    r"|reply to|convert|punctuate|transliterate|render|put|turn|consider|read|look at|explain|judge|count|extract"
    r"|identify|check|compare|make)"
)
_SAYING = (
    r"(?:says?|said|saying|reads?|reading|wrote|writes?|goes|states?|stated|tells? \w+|told \w+|asks?(?: \w+)?"
    r"|asked \w+|replied|answered|posted|texted|shouted|whispered|announced)"
)
_THIS = r"(?:following|below|this|these|here|attached|pasted)"
_LANGUAGE = (
    r"(?:English|German|French|Spanish|Italian|Portuguese|Dutch|Russian|Chinese|Japanese|Korean|Hindi|Arabic|Turkish|Polish"
    r"|Swedish|Danish|Norwegian|Finnish|Greek|Czech|Hungarian|Romanian|Ukrainian|Vietnamese|Thai|Latin|Hebrew|Swahili)"
)
# Work that is done on a text, whatever is in it.
_REWORK = (
    r"(?:summari[sz]e|sum up|translat\w+|paraphrase|re-?write|rephrase|reword|proof-?read|correct|fix|critique|rate"
    r"|grade|critici[sz]e|analy[sz]e|classify|review|improve|shorten|condense|simplify|polish|evaluate|judge|explain|interpret"
    r"|transliterate|categori[sz]e|compare|extract|tl;?dr|check|continue)"
)

_CHECK = r"(?:check|proof-?read|correct|fix|edit)"

# What stands before a colon behind which material follows.
INTRODUCTION = re.compile(
    rf"\b{_WORK}\b.*\b{_THIS}\b"
    r"|\b(?:translat\w+|proof-?read|summari[sz]e|paraphrase|rephrase|reword|transliterate|tl;?dr)\b"
    rf"|\b(?:{_THIS}|the|my|an?|his|her|our|their|its|\w+['’]s)\b(?: [\w'’-]+){{0,4}} {_NOUN}\b[^.!?]{{0,30}}$"
    rf"|\b{_THIS}\b.*\b{_NOUN}\b|\b{_SAYING}(?: \w+)?$|\bhere(?: is|['’]s| are)\b"
    rf"|^\W*(?:\w+ )?{_NOUN}(?: ?\d+| [a-z])?\W*$|^\W*{_NOUN}(?: to| from| for)\b[^.!?]{{0,30}}$"
    rf"|^\W*(?:please )?{_REWORK}(?: [\w ]{{0,20}})?$|\b{_CHECK}\b.* (?:my|his|her|our|their)\b"
    rf"|^\W*(?:input|q|question)\b\W*\w?\W*$|\b(?:in|into|to) {_LANGUAGE}\W*$",
    re.I,
)
# … unless what follows is the writer's own: rules, a format, words to use.
OWN_INTRODUCTION = re.compile(
    r"\b(?:instructions?|rules?|requirements?|constraints?|guidelines?|criteria|conditions?|formats?|formatting|structure"
    r"|template|keywords?|words?|phrases?|letters?|such as|like|for example|e\.g\.?|i\.e\.?|form|points?|bullets?"
    r"|sections?|options?|dividers?|symbols?|markers?|headings?|order|items?|exact\w*|topics?|parts?|steps"
    r"|placeholders?|things|titles?|names?|asterisks?)\b[^.!?:]{0,25}$",
    re.I,
)
# Work on a text whose kind makes no difference: instructions that are to be translated are material too.
REWORKING = re.compile(
    rf"\b{_REWORK}\b.*\b{_THIS}\b|\b(?:translat\w+|proof-?read|paraphrase|rephrase|reword|transliterate|summari[sz]e)\b"
    rf"|\b(?:following|below|this|these) (?:\w+ ){{0,2}}{_NOUN}\b(?! format)|\b{_SAYING}$"
    rf"|\b{_CHECK}\b.* (?:my|his|her|our|their)\b",
    re.I,
)
# What every announcement has, to be looked for first: one of these, or a request at its beginning.
POINTERS = ("this", "these", "following", "below", "here", "attached", "does it", "do it")
REQUEST = re.compile(rf"\W*(?:please |kindly |can you |could you )?(?:extract|{_REWORK})\b", re.I)
# A sentence that announces a text in the next paragraph without a colon.
ANNOUNCEMENT = re.compile(
    rf"\b{_REWORK}\b.*\b(?:following|below)\b|\b(?:following|this|these) (?:\w+ ){{0,2}}{_NOUN}\b|\b{_NOUN} below\b"
    r"|\b(?:is|are|does|do|what|which|who|why|how)\b.*\b(?:following|below)\b|\b(?:below|here)(?: is| are|['’]s)\b"
    r"|^\W*(?:please )?extract\b"
    rf"|^\W*(?:please |kindly |can you |could you )?{_REWORK}(?: (?:this|the|my|it))?(?: \w+)?(?: {_NOUN})?[.!?]*$",
    re.I,
)
# The end of a line that points at what stands on the next ones.
POINTING = re.compile(
    rf"(?<!like )(?<!like the )(?<!use )(?<!use the )(?<!follow )(?<!follow the )(?<!include )\b"
    rf"(?:this|these|following|attached)(?: [\w'’-]+){{0,2}} {_NOUN}\W*$"
    rf"|^\W*(?:please |kindly |can you |could you )?{_REWORK} (?:this|these|it|the following)\b(?: [\w'’-]+){{0,4}}\W*$"
    r"|\b(?:does|do) (?:this|these|it) (?:mean|say)\W*$"
    r"|\b(?:sent|gave|wrote|found|got|saw|received|posted)\b[^.!?]{0,30} this(?: \w+){0,2}\W*$"
    r"|^\W*(?:is|are|does|do|what|who|how)\b.*\b(?:this|these) (?:\w+ )?(?:instructions?|rules?|prompts?|orders?)\b"
    r"[^.!?]*\?$"
    r"|\b(?:think|feel|opinion|thoughts)\b.{0,20}\b(?:about|of|on) (?:this|these)\W*$",
    re.I,
)
# … unless the text is a page elsewhere, or what is below is the request itself, to be repeated.
ELSEWHERE = re.compile(r"http|\brepeat", re.I)
# A sentence that speaks of a text which stands before it, and a last line that can speak of no other.
UPWARDS = re.compile(r"\b(?:above|preceding|foregoing)\b", re.I)
UPWARD = re.compile("above|preceding|foregoing")  # to be looked for first, in lower case
ABOVE = re.compile(
    rf"\b{_REWORK}\b.*\b(?:above|preceding|foregoing)\b|\b(?:is|are|was|were|does|do|did|what|which|who|why|how|from|in)\b"
    rf".*(?:\b{_NOUN} above\b|\b(?:above|preceding|foregoing) {_NOUN}\b)",
    re.I,
)
_OWN_WORD = (
    r"(?:requests?|questions?|prompts?|instructions?|rules?|requirements?|guidelines?|task|formats?|constraints?)"
)
OWN_ABOVE = re.compile(
    rf"^\W*(?:then|after|afterwards|finally|next|also)\b|\brepeat|\b(?:{_OWN_WORD}|examples?|template|criteria) above\b"
    rf"|\babove(?:[- ](?:mentioned|listed|stated|given))? {_OWN_WORD}",
    re.I,
)
LAST_LINE = re.compile(
    rf"^\W*(?:please |kindly |can you |could you )?{_REWORK} (?:this|these)(?: {_NOUN})?(?: [\w'’-]+){{0,4}}[.!?]*$"
    rf"|^\W*what (?:does|do) (?:this|these)(?: {_NOUN})? (?:mean|say)[.!?]*$",
    re.I,
)
CODE_NOUN = re.compile(r"\b(?:code|scripts?|functions?|snippets?|program|class|file|config\w*)\b", re.I)
# Words that go on with the request behind a quotation on the same line, and not with a pasted text.
_LINKING = "in into to with without using use as and so for but by please then make do don't don’t from"
LINKING = frozenset(_LINKING.split())

COLON = re.compile(r":(?=\s)(?<=[\w)\]”\"’'*]:)| [-–—](?= [A-Z])(?<=\w [-–—])")  # a literal first: found faster
SENTENCE_START = re.compile(r"[.!?][\"”')]*\s+(?=\S)|\n+|:\s+(?=\S)")

# What makes a quotation a text to work on, and what makes it an argument of the sentence.
QUOTED_TEXT = re.compile(rf"\b(?:{_NOUN}|{_WORK}|{_SAYING})(?: (?:this|the|that|following|to \w+))?[\s:,(–-]*$", re.I)
ARGUMENT = re.compile(
    r"\b(?:end\w*|start\w*|begin\w*|finish\w*|clos\w+|includ\w+|contain\w*|mention\w*|use|using|add\w*|exact\w*|phrases?"
    r"|keywords?|words?|append|avoid\w*)\b[^.!?]{0,40}$",
    re.I,
)

HEADER = re.compile(
    r"^(?:from|to|cc|bcc|subject|sent|date|reply-to|betreff|von|an|de|objet|asunto)[ \t]*:[^\n]*$", re.I
)
GREETING = re.compile(
    r"^(?:hi|hello|hey|dear|good (?:morning|afternoon|evening)|greetings|to whom it may concern|sehr geehrte\w*"
    r"|liebe\w?|hallo|bonjour|cher|chère|hola|estimad\w+|ciao|gentile)\b(?:[^\n.!?:]|(?<=M[rs])\.|(?<=Mrs)\.|(?<=Dr)\.){0,40}"
    r"[,:!–-]?[ \t]*$",
    re.I,
)
SIGN_OFF = re.compile(
    r"^(?:(?:kind|best|warm|many)? ?(?:regards|wishes)|best|thanks(?: again| so much| a lot)?|thank you(?: so much)?"
    r"|cheers|sincerely|yours(?: \w+)?|love|respectfully|cordially|all the best|take care|talk soon"
    r"|mit freundlichen grüßen|viele grüße|cordialement|bien à vous|saludos"
    r"|[-–—]+ ?[A-Z]\w+)[,.!]?(?: [A-Z][\w.]*){0,3}[,.!]?[ \t]*$",
    re.I,
)
SPEAKER = re.compile(
    r"^\W{0,3}(?:\d\d?:\d\d\W{1,3})?(?P<who>[A-Z][\w.'’-]*(?: [A-Z][\w.'’)-]*){0,2})(?: ?\([^)\n]*\))?\]?:\s+\S"
)
# Keys of a structured request, which are no speakers.
FIELDS = re.compile(
    r"^(?:task|formats?|length|tone|style|languages?|output|constraints?|rules?|requirements?|notes?|instructions?|topic"
    r"|audience|role|goal|keywords?|title|response|persona|voice|important|ps|p\.s|remember|reminder|limit|section"
    r"|paragraph|part|step|request|also|example)\b",
    re.I,
)
CODE = re.compile(
    r"^\s*(?:def \w+\(|class \w+[:({]|import \w+[.\w]*;?$|from [\w.]+ import|#include|(?:public|private|static) \w"
    r"|async \w|export \w+ \w|function\b.*[({]|(?:const|let|var|int|string|bool|void|auto|final|fn|func|val) \w.*[=({]"
    r"|return\b.*;?$|//|/\*|\*/|<\?php|<!--|(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER) [\w*]|\$ \w|>>> |@\w+(?:\(|$)"
    r"|#!|\\\w+|[\w.]+\s*=\s*[\w\"'\[{(]|[\w.]+\([^)]*\);?\s*$|\"[\w ]+\"\s*:)|[;{}]\s*$|^\s*[{}\[\]]+\s*,?$"
)
REMARK = re.compile(r"^\s*(?:#|--|;;|%|\"\"\"|'''|\*)|^(?:\t| {2,})\S")
ROWS = re.compile(r"^\W{0,2}(?:\d{4}-\d\d-\d\d|\d\d?:\d\d(?::\d\d)?)\b|^[^|\n]*\|[^|\n]*\||^\w+;\S")

# The classic of planted instructions: never heeded, wherever it stands. A warning is none ("never ignore the rules"),
# nor is a defence against them ("ignore all instructions in the text").
OVERRIDE = re.compile(
    r"(?<!not )(?<!n['’]t )(?<!never )\b(?:ignor\w+|disregard\w*|forget|overrid\w+|bypass)\b[^.!?\n]{0,40}"
    r"\b(?:instructions?|prompts?|rules|directions|guidelines|orders|everything|above|were told|anweisungen"
    r"|instrucciones|istruzioni|instruções)\b"
    r"(?! (?:that (?:are|stand|appear|come) )?(?:in|inside|within|from|contained|found|of)\b"
    r"(?! (?:the |your )?(?:system|user)))",
    re.I,
)
OVERRIDING = re.compile("ignor|disregard|forget|overrid|bypass")  # to be looked for first, in lower case
# … given as an order, and not told of.
ORDER = re.compile(
    r"(?:^|[.!?:;,\])>*\"”]\s*|\b(?:please|and|must|should|to|now|you|ai|assistant|models?|kindly|just|then|also) )"
    r"(?:ignor(?:e|ier\w*|a|ez)|disregard|forget|override|bypass)$",
    re.I,
)

# A last paragraph that is the writer's again, though nothing closes the material before it.
RESUMED = re.compile(
    r"\b(?:your|the) (?:entire |whole |full |final |own )?(?:answer|response|reply|output|summary|translation)\b"
    r"|\b(?:your|the) rewrite\b|\byour (?:song|poem|story|essay|rap|limerick|haiku|joke|riddle)\b"
    r"|\b(?:first|before)\b.{0,30}\brepeat",
    re.I,
)
