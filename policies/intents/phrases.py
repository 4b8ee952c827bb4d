"""How people ask for each kind of work, written down by us: cue patterns, and a small grammar of prompts to learn from.

The shipped model is trained on prompts from this grammar only, so that no third party's text or label is in it. Patterns are
about the request ("sum up", "which of the following"), never about a data set.
"""

from __future__ import annotations

import re
from itertools import product

CLASSIFICATION, EXTRACTION, GENERATION = "classification", "extraction", "generation"
OPEN_QA, REASONING, REWRITE, SUMMARIZATION = "open_qa", "reasoning", "rewrite", "summarization"

# (intent, pattern): a pattern found in the instruction is a feature of its own; its weight is learned, not set here.
CUES: tuple[tuple[str, str], ...] = (
    (SUMMARIZATION, r"\bsumm?(?:ari[sz]e|ary|aries|arising)\b|\bsum(?:ming)? (?:it |this |that |them )?up\b"),
    (
        SUMMARIZATION,
        (
            r"\btl;?dr\b|\bin a nutshell\b|\bin brief\b|\bin short\b|\bboils? down\b|\babstract\b|"
            r"\brecap(?:ped)?\b"
        ),
    ),
    (
        SUMMARIZATION,
        (
            r"\bkey points?\b|\bmain points?\b|\bhighlights?\b|\btake-?aways?\b|\boutline\b|\bgist\b|"
            r"\bessentials?\b"
        ),
    ),
    (
        SUMMARIZATION,
        (
            r"\bcondense|\bdistil|\bsynthesi[sz]e|\bconcise\b|\bshorten|\bfew words\b|\bone sentence\b|"
            r"\bdigest\b"
        ),
    ),
    (
        SUMMARIZATION,
        (
            r"\b(?:title|headline)\s*(?:for|:)|\b(?:make|write|give|generate|suggest) (?:a |the |"
            r"an )?(?:short )?(?:title|headline)\b"
        ),
    ),
    (
        REWRITE,
        (r"\bparaphras(?:e|ing) (?:the|this|that|it|of)|\brephras|\brewrite\b|\breword|\bin other words\b"),
    ),
    (
        REWRITE,
        (
            r"\bsame (?:thing|meaning) as (?:this|the)|\bcorrect (?:the )?(?:grammar|spelling)|\btranslate\b|"
            r"\bproofread|\bpolish\b|\bmore (?:formal|polite)\b"
        ),
    ),
    (
        CLASSIFICATION,
        (
            r"\b(?:positive|negative|good|bad|satisfied|flattering|favou?rable)(?:ly)? or\b|\bsentiment\b|"
            r"\btone\b|\bopinion\b"
        ),
    ),
    (
        CLASSIFICATION,
        (
            r"\bclassif|\bcategor|\blabel\b|\bwhich (?:section|topic|class|type|kind)\b|\btopic\b|"
            r"\bdescriptor\b|\bassign\b|\btag\b"
        ),
    ),
    (
        CLASSIFICATION,
        (
            r"\bduplicates?\b|\bequivalent\b|\b(?:mean|say|express|convey|ask)\w* the same\b|\bsame (?:thing|"
            r"question|meaning)\b|\bparaphrase (?:each|or|sentence)"
        ),
    ),
    (
        CLASSIFICATION,
        (
            r"\bparaphrase\s+(?:of\s)?sentence|\bcan (?:i|we) (?:replace|rewrite|merge)\b|\bdo they\b|"
            r"\bis (?:that|this|it) (?:true|right|correct)\b"
        ),
    ),
    (
        CLASSIFICATION,
        (r"\brat(?:e|ing)\b|\bstars?\b|\bscale (?:of|from)\b|\bscore\b|\bout of (?:five|ten|5|10)\b|★"),
    ),
    (
        CLASSIFICATION,
        (
            r"\brecommend\b|\breview(?:er|s|ed)?\b|\bfeel(?:s|ing)? about\b|\benjoy(?:ed)?\b|\bspam\b|"
            r"\btoxic\b|\burgent\b"
        ),
    ),
    (
        CLASSIFICATION,
        (
            r"\byes or no\b|\btrue or false\b|\bdoes (?:this|that|it|the)\b|\bis (?:this|it|the) (?:a|an|"
            r"review|product|text)?"
        ),
    ),
    (
        CLASSIFICATION,
        (
            r"\brefer(?:s|ring)? to\b|\bis (?:the|it) asking (?:for|about)\b|\basking (?:for|about)\b|"
            r"\bdetermine (?:if|whether)\b|\bdecide (?:if|whether)\b"
        ),
    ),
    (
        EXTRACTION,
        (
            r"\bextract\b|\bfind (?:the|all|an|its)\b|\bidentify\b|\blist (?:all|the|every)\b|\bpull out\b|"
            r"\bfill in\b|\bquote the\b"
        ),
    ),
    (
        EXTRACTION,
        (
            r"\b(?:based on|according to|given|from|in) (?:the |this |that )?(?:following |above |"
            r"below )?(?:passage|paragraph|context|text|article|document|movie plot|plot|information)\b"
        ),
    ),
    (
        EXTRACTION,
        (
            r"\banswer (?:the )?(?:question|following|this)\b|\bcontains? (?:the|an) answer\b|\b(?:read|"
            r"refer to) the (?:passage|context|paragraph|following)\b"
        ),
    ),
    (
        EXTRACTION,
        (
            r"\bkey ?words?\b|\bconcepts\b|\btopics\b|\bentit(?:y|ies)\b|\bfields?\b|\battributes?\b|"
            r"\brelation(?:ship)?\b|\bjson\b|\bsubject\b|\bobject\b|\bfacts? (?:about|in|are)\b"
        ),
    ),
    (
        EXTRACTION,
        (
            r"\bwhat is (?:the|its|their) (?:date|name|total|address|number|amount)\b|\bwho is mentioned\b|"
            r"\binvoice\b|\breceipt\b"
        ),
    ),
    (
        GENERATION,
        (
            r"\b(?:write|generate|create|compose|draft|make up|invent|build|tell)\b (?:me )?(?:a|an|the|some|"
            r"its|another) \w*\s?\w*\s?(?:story|sentence|article|review|dialog(?:ue)?|poem|email|question|"
            r"plot|essay|letter|text|bio(?:graphy)?|post|description|utterance)"
        ),
    ),
    (
        GENERATION,
        (
            r"\bgenerate (?:a |the )?(?:question|possible)|\bwrite (?:a |the )?question\b|\bwhat (?:could|"
            r"would|is|was|might)(?: be)? (?:the|a) question\b|\bask a question\b|\bquestion (?:that|whose|"
            r"about|to)\b"
        ),
    ),
    (
        GENERATION,
        (
            r"\bstory\b|\bexpand\b|\bspice up\b|\belaborate\b|\bcontinue\b|\bput (?:the|these|them)\b|"
            r"\bconcepts together\b|\busing (?:all )?(?:these|the) (?:words|concepts)\b"
        ),
    ),
    (
        GENERATION,
        (
            r"\bfirst (?:utterance|line) (?:of|in)|\blast (?:utterance|line)|"
            r"\bwhat would (?:the )?(?:\w+ )?say\b|\bbiography\b|\bsuggest a\b.*\bplot\b|\bpretend\b|"
            r"\bimagine\b"
        ),
    ),
    (
        OPEN_QA,
        (
            r"^(?:q(?:uestion)?:?\s*)?(?:who|what|when|where|which|whose|how (?:many|much|old|"
            r"long))\b[^\n]{5,140}\?\s*(?:a(?:nswer)?:?)?\s*$"
        ),
    ),
    (
        OPEN_QA,
        (
            r"\bone or two words\b|\bbrief(?:ly)? answer\b|\bfinal exam\b|\btrivia\b|\bfacts? to answer\b|"
            r"\bwhat'?s the answer\b|\bhere'?s a (?:\w+ )?question\b|\bcombin\w+ facts\b"
        ),
    ),
    (
        REASONING,
        (
            r"\b(?:pick|choose|select|which)\b[^.?\n]{0,40}\b(?:options?|choices?|answer|alternatives?|best|"
            r"correct)\b|\bpossible (?:answers|options)\b|\bmultiple[- ]choice\b"
        ),
    ),
    (
        REASONING,
        (r"(?:^|\n)\s*(?:\(?[a-d1-4][).:])\s|\b(?:options|choices)\s*:|(?:^|\n)\s*-\s[^\n]{1,60}\n\s*-\s"),
    ),
    (
        REASONING,
        (
            r"\bhint\b|\bbackground\b|\bsituation\b|\bprocess\b|\bstep\b|\beffect\b|\bcause\b|\bwhy\b|"
            r"\bsolve\b|\bprove\b|\bcalculate\b|\bhow many\b"
        ),
    ),
    (
        REASONING,
        (
            r"\bconversation\b|\bdialog(?:ue)?\b|\blogic\b|\btest\b|\bsense\b|\bgiven the (?:fact|paragraph|"
            r"context)|\bhypothesis\b|\bfact(?:s)?\s?\d?:"
        ),
    ),
)
PATTERNS = tuple(re.compile(pattern, re.IGNORECASE) for _, pattern in CUES)

_DOCUMENTS = (
    "The council met on Tuesday to discuss the new bridge. Members agreed to ask for three offers before the summer.",
    "I bought this kettle in May and it broke after two weeks. The shop was friendly and sent another one at once.",
    "Invoice 20417. Northwind Paper Ltd, 4 Harbour Road. Two boxes of envelopes 18.40, delivery 5.00, total 23.40.",
    "Anna: are you coming tonight?\nBen: I have to finish the report first.\nAnna: then let us meet tomorrow at noon.",
    "Rivers carry sand and stones towards the sea. Where the water slows down the heaviest grains sink first.",
    "The battery lasts long but the screen scratches easily, and the menu is hard to read in the sun.",
    "Mara Lind was born in Turku in 1931. She studied chemistry, taught for thirty years and wrote two novels.",
)

_REQUESTS: dict[str, tuple[str, ...]] = {
    SUMMARIZATION: (
        "Summarize the following text:",
        "Sum this up in two sentences.",
        "TL;DR:",
        "Write a short summary of the document.",
        "What are the main points of this article?",
        "Give me the gist of it.",
        "Condense this to its essentials.",
        "In a nutshell,",
        "Write a headline for this article:",
        "Key takeaways as bullet points, please.",
        "Title:",
        "Make this more concise, one sentence is enough.",
        "Can you write an abstract of the text below?",
        "To sum up this dialogue:",
        "Recap the conversation for someone who missed it.",
        "How would you put that in a few words?",
    ),
    REWRITE: (
        "Paraphrase the following sentence:",
        "Rewrite this so that it sounds more formal:",
        "Say the same thing in other words.",
        "Rephrase the text without changing what it means.",
        "Correct the grammar and spelling:",
        "Translate this into German:",
        "Write a sentence that means the same as this one:",
        "Reword this politely.",
        "Make this text friendlier:",
    ),
    CLASSIFICATION: (
        "Is this review positive or negative?",
        "What is the sentiment of the text?",
        "Which category fits best: sport, politics, business?",
        "Classify the following message as spam or not spam.",
        "How many stars did the customer give?",
        "Does the writer like the product? Yes or no.",
        "Do these two sentences mean the same thing?",
        "Are the two questions duplicates?",
        "Which section of a newspaper is this from?",
        "Label the tone of this message.",
        "On a scale from 1 to 5, how satisfied is the customer?",
        "Is the statement true or false?",
        "Would the reviewer recommend this?",
        "Assign one of these topics:",
        "Does sentence 1 paraphrase sentence 2?",
        "What kind of thing is the question asking about?",
        "Is this the correct answer to the question?",
        "The feeling expressed here is",
    ),
    EXTRACTION: (
        "Extract the company, the date and the total as JSON.",
        "Answer the question with words from the passage.",
        "List all names mentioned in the text.",
        "Find the address in this document.",
        "According to the text, when was she born?",
        "Pull out the key words of this sentence:",
        "Given the context, what is the total?",
        "Read the paragraph and find the answer: what sinks first?",
        "Fill in the fields name, place and year.",
        "Which facts does this text give about the person?",
        "The answer to this question is in the passage: who was late?",
        "What concepts are in the sentence?",
        "Based on the passage above, what did they agree to ask for?",
        "Name the subject and the object of this relation:",
    ),
    GENERATION: (
        "Write a story that starts like this:",
        "Generate a question whose answer is in this text.",
        "Write an article from these highlights:",
        "Make up a dialogue that fits this summary:",
        "Using these words, write one sentence: dog, ball, park",
        "Draft a friendly reply to this customer:",
        "Continue the text.",
        "Expand this into a longer article:",
        "Invent a title and a plot for a film about this.",
        "Compose a poem about the sea.",
        "What could be the first line of this conversation?",
        "Write a product description:",
        "What question was asked to get this answer?",
        "Write a review that would get two stars.",
        "Put these concepts together in a sentence:",
        "Write a biography from these facts:",
    ),
    OPEN_QA: (
        "Who wrote the first dictionary of the language?",
        "What is the capital of the country with the most lakes?",
        "Question: when was the harbour built? Answer:",
        "Where do penguins live?",
        "Answer this trivia question: which planet has the most moons?",
        "Q: how long is the longest river?\nA:",
        "I need the answer to a question in one or two words: who composed the opera?",
        "Which metal is liquid at room temperature?",
        "Here is a hard question that needs several facts: in which year did the founder of the school die?",
        "What is the name of the process by which plants make sugar?",
    ),
    REASONING: (
        "Choose the best answer:\nA. the sand\nB. the stones\nC. the water",
        "Given the background and the situation, which grains travel further?",
        "Solve the problem step by step: three trains carry 40 people each, how many seats are free of 200?",
        "What might be the next step of the process?",
        "Why did that happen? Pick one of these options:\n- it rained\n- they were late\n- nobody knew",
        "Which of the following follows from the text?",
        "How would Anna feel afterwards?\nOptions: glad, angry, tired",
        "Use the hint to answer: does the smooth or the rough one slide further?",
        "What effect does more wind have: more, less or none?",
        "Multiple choice question. Select the correct option:\n(a) iron\n(b) glass\n(c) wood",
        "Prove that the sum of two odd numbers is even.",
        "Read the dialogue, then choose: where are they?\n- at home\n- at work",
    ),
}


def own_prompts() -> list[tuple[str, str]]:
    """Return (prompt, intent) pairs from our own grammar, in a fixed order: each request before, after and without a document."""
    pairs: list[tuple[str, str]] = []
    for intent, requests in _REQUESTS.items():
        for number, request in enumerate(requests):
            if intent == OPEN_QA:
                pairs.extend((form, intent) for form in (request, f"{request}\n", f"Answer the question. {request}"))
                continue
            pairs.append((request, intent))
            for offset, after in product(range(2), (False, True)):
                document = _DOCUMENTS[(number + 3 * offset) % len(_DOCUMENTS)]
                pairs.append((f"{document}\n\n{request}" if after else f"{request}\n{document}", intent))
    return pairs
