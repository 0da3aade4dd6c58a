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
    af am az be bs ca ceb ckb cy eo et eu fil fy ga gd gl gsw gu hr hy is jv ka kk km kn ku ky lb lo lt lv mg mi
    mk ml mr ms mt my ne nn or pa ps sd si sl so sq sr sw te tg ur uz xh yue
    """.split()
)

ADDED_LAST = tuple(
    """
    ab agq ak an as asa ast bas bew bez bgn blo bm bo br brx byn ccp ce cgg chr co cv dav dje dsb dyo dz ebu ee
    ewo ff fo frr fur gaa gez guz ha hsb ht ia ie ig jgo jmc kaa kab kam kde kea kgp khq ki kl kln kok ks ksb
    ksf ksh kxv la lag lg lij lkt lld ln lrc lu luo luy mai mas mer mfe mgh mn mua myv mzn naq nd nds nmg no nqo
    nus nyn oc om os pap pcm prg qu rif rm rn rof rw rwk sah saq sat sbp sc scn se seh ses sg shi smn sms sn st
    syr szl teo ti tig tk tn to tok trw tt twq tzm ug vai vec vun wae wal wo xnr xog yav yi yo yrl za zgh zu
    """.split()
)

GROUPS = {
    "english": (ENGLISH,),
    "phase1": PHASE1[1:],
    "phase2": ADDED_IN_PHASE_2,
    "last": ADDED_LAST,
}
