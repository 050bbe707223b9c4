"""The tuned numbers of the focus, each with its unit and where it comes from; one place, so that they are tuned as one.

Worth, harm and evidence are on the scale of 0 (nothing) to 1 (full evidence), the share of something has no unit. A
source "measured" is in docs/training.md ("What was learned") or, where it says so, here. Bounds of time and memory are
no matter of tuning: they stand where they are kept.
"""

from __future__ import annotations

# ---- words as evidence (lexical.py)

CELL = 16
"""Tokens. Two neighbouring cells of a question are a passage: as long as a block of 32, for it is what one can hold."""
LONGEST_QUESTION = 512
"""Tokens of a question that are looked up, the newest: twice what a session asks with, so that it bounds time alone."""
FULL_EVIDENCE = 2.0
"""Terms that occur once, whose weight is full evidence: one may be an accident, two in one block are not. Less is worth
proportionally less."""
WORTHWHILE = 0.25
"""Share of the best place's evidence below which a place is noise: to open it would only churn the working context."""
TELLING = 0.3
"""Share of a unique term's weight from which on a term tells something. Weights are squares of idf, so of N blocks at
most about N^0.45 hold such a term: names do, not the words of every page."""
OUTDONE = 0.9
"""Share of a better place's evidence that a place may have at most to be left out as a look-alike of it: places nearer
to each other than a tenth are as good as equal, several values of one key for example."""
NEW = 0.05
"""Share of a place's own evidence that a better place may lack and still hold all that speaks for it: common words."""
NEIGHBOUR_ADDS = 0.15
"""Share of a block's evidence by which its neighbour must raise it to belong to the place: facts straddle borders."""
LONG_VALUE = 64
"""Tokens that the best places are opened ahead: the value of a key may be long, a UUID for example."""

# ---- from hits to targets (targets.py)

AHEAD, BEHIND = 0.8, 0.7
"""Worth of the block after and before a hit, as a share of it: facts straddle borders, values follow their keys. Less
was tried, and not taken."""
REACH = 0.8
"""Share of the best hit's worth from which on a hit reaches further ahead: no less than its neighbour has."""

# ---- leads (leads.py, lens_lexical.py)

OF_EACH = 2
"""Statements that a question, or one lead of the hop before, finds to follow."""
PARTS = 3
"""What is looked for of a statement at most: all of it, what is new in it, and what comes after (leads._parts)."""
LEADS = PARTS * OF_EACH
"""Leads of one hop, at most: as many as the question alone can find."""
CUT_OF_EACH = 8
"""Statements that a question or a lead finds to see whole, if a block's border cuts them: as many as places that a
refocus opens (``look_ahead``)."""
LONGEST_STATEMENT = 64
"""Tokens of a statement: longer sentences are cut. Two blocks of 32, what a place and its neighbour hold."""
BEFORE, AFTER = 6, 12
"""Tokens of a statement before and after what was asked for that belong to a lead: a name, and a phrase with a value.
Fewer before were tried: the same."""
AS_GOOD = 0.6
"""Share of what the best statement holds of the question from which on another is followed too."""
FOLLOWED = 0.62
"""Worth of the place that a lead names: below what was asked for itself, above its look-alikes. Measured: 0.75 opens as
much more of `combine` (116 to 112 of 132) as it loses of `multivalue` (120 to 127)."""
REST = AHEAD
"""Worth of the block in which a statement that the question found goes on: that of the block after any hit."""
ASKED = 0.5
"""Share that the question's own words have in choosing the place that a lead names. Measured: `combine` 17 to 20 of 24
at a million tokens; counted whole, no better."""

# ---- the look-ahead by lens keys (lookahead.py)

CERTAIN = 7.0
"""Deviations above the mean at which a score counts as found (0.76). Measured: the best of what is not there stands 3
to 6 above it, a paraphrase that is there 6 to 14; hence the square, which keeps the two apart."""
CROWD, APART = 4, 0.4
"""The best hit is fully distinct if it stands by this share further above the mean than the fourth. Measured, at 32
thousand and a million tokens: 0.25 to 1.6 for paraphrases that are there; 0 to 0.1 for numbers and names, of which the
lens finds all that look alike and none before the others; to 0.3 for values that change."""

# ---- the search by word vectors (word_search.py)

BESIDE = 0.5
"""Share of a query's weight that its best word in a block or its neighbours adds. Measured on the tuning questions over
real text: without it a sixth fewer are found; 0.25 to 1 are alike."""
MEANING = 3.0
"""What the best block by word vectors counts beside full evidence in words. Measured on the tuning questions: 1 to 3
are alike; 0.5 loses half of what is gained."""
UNSURE = 0.59
"""Worth of the best find of which words are not sure: just below ``FocusConfig.sure``, so that nothing else is put away
for its sake."""
SURE_WORDS = 0.6
"""Worth from which on what words found is taken as it is. Without it, five of 33 UUIDs in 131 thousand tokens lost the
blocks in which they go on."""
STANDS_OUT = 0.3
"""How far above the mean a hit of the lens keys stands (``lookahead.standing``) to be taken beside what word vectors
found. Measured: of the tuning questions over real text one in ten has such a hit, of paraphrases nine in ten. How
distinct the hit is tells less here: 0.7 is the median of either."""
KEY_BLOCKS = 12
"""Blocks taken of the keys' hits at most: four places with their neighbours."""
TOLD_WORDS = 32
"""Queries of a tail that are looked up, the weightiest: a bound of time, twice what questions have."""

# ---- learned and lexical, fused (lens_learned.py); other values change nothing or lose, seeds 0 and 1

LEAST_DISTINCT = 0.3
"""Certainty that the best learned hit must have, or none is taken: one of a crowd is a look-alike, and words must
choose. Measured: 0.2 and 0.1 cost one or two chains of 22."""
GIVES_WAY = 8
"""Power of how sure words are by which learned targets lose worth: three quarters of the evidence take off a tenth,
full evidence all. A place that a learned look-alike took is not free again for what the next hop finds."""
TAKES_OVER = 3
"""Power of the best learned hit's certainty by which the lexical targets lose worth, as far as words are not sure: the
few places that a refocus opens are better spent on further finds than on words that stand everywhere."""
FIRM = 0.9
"""Worth of a fully distinct hit, however sure words are: full evidence in words is an accident at times, above all in
short histories, and a single place is soon spared. Below TURN_WORTH, for the question itself comes first."""

# ---- entries that nothing was asked of (view.py, lens_learned.py, allocators)

RECENCY_WORTH = 0.25
"""Harm of collapsing the newest entry of which nothing else is known: less than that of a block worth opening."""
ENTRY_WORTH = RECENCY_WORTH
"""Most that an entry's own learned score counts, as much as being new. A network fitted to differences of hundredths of
a nat has no scale to trust: measured, loud ones filled the working context with noise."""
TURN_WORTH = 0.95
"""Worth of the current turn's own blocks: the model must read what it was asked. Only the best find comes first."""
PRIOR = 4.0
"""Observations that a lens score counts for, against those of an arm of the bandit. Not measured: no preset uses it."""
FADE = 0.98
"""What an arm's evidence keeps of its weight when it is updated (half after 34 times): lenses and subjects drift."""
