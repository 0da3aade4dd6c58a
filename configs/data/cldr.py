"""Which phase adds which language in the demo on text from CLDR. Codes are CLDR's own (`fo`, not `fao`).

As in the published curriculum, languages with much text on the web come first and the long tail comes last: the first
two lists are languages of the published phases for which CLDR has text, and the last phase adds all others.
"""

ENGLISH = "en"

PHASE1 = (
    ENGLISH,
    *"de fr es it pt nl sv da nb fi pl cs sk hu ro bg uk ru el tr ar fa he hi bn ta th vi id ja ko zh".split(),
)

ADDED_IN_PHASE_2 = tuple(
    """
    af am be bs ca cy eo eu fy ga gd gl gsw hr hy is jv ka kk km kn ky lb lo lt lv mk mt nn pa so sq sr sw tg ur uz yue
    """.split()
)

ADDED_LAST = ()

GROUPS = {
    "english": (ENGLISH,),
    "phase1": PHASE1[1:],
    "phase2": ADDED_IN_PHASE_2,
    "last": ADDED_LAST,
}
