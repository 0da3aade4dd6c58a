"""The languages of mmBERT's phases, from the published counts of training tokens per language.

ISO 639-3 codes, largest first, as they stand in the counts (Arabic is `arb`, Chinese `cmn`, Farsi `fas`); `code` is
program code. The counts have 60 languages in phase 1, 109 from phase 2 on (the paper says 110) and 1,833 in the last.
"""

from mmbert_jax.data.language_codes import CODE

ENGLISH = "eng"

# Phase 1: English and 59 others.
PHASE1 = (
    ENGLISH,
    *"""
    rus cmn spa deu fra jpn ita por nld pol ind kor tur fas ces ron vie arb nob hun dan swe tha ukr ell fin
    bul slk hrv hin lit heb slv ekk ben zsm lvs azj urd tam kaz afr fil mkd mar npi kat glg tel mal mya guj
    khk khm swh sin gle pbt xho
    """.split(),
)

ADDED_IN_PHASE_2 = tuple(
    """
    bos cat srp als uzn ary isl bel anp gmh lat eus kan ars pan hye nno bew cym arz kir tgk rmy som ory tat
    gsw mlt nap hif ckb bod epo kmr snd lao ltz amh gla plt pcm yue jav hat mww fry mri ceb nrm
    """.split()
)

PHASE2 = PHASE1 + ADDED_IN_PHASE_2

# Seen in the all-languages decay only. Many were taken whole, less than a million tokens.
ADDED_LAST = tuple(
    """
    uig tuk fao asm pap ydd smo div bak cos hyw ibo sot sun aeb zul nya kin haw yor lus sah ast sdh kiu sna
    hbo bar dag chv oci azb tir nds glk rue sco sme mui lij bre run frp cnh crh zea fro roh san hil oss acm
    inh crs gaz mfe cbk goh lim kal mhr gag syl hsb lmo mai udm hac tyv srd ban kha wuu non dzo lug pnb fij
    lin grc wol che arg pfl ilo brh iba raw bho kpv eml wln hne ven rmn scn ctd pms new gug bxr mwl uzs ang
    enm gom tah tso tsn twi ton kaa ltg nso nde bbc kac myv sag csb bam jam ava vls bcl lad pdc shn cfm kbd
    srn lez cmr ksh szl ndo ina tcz fit krc vro fur pcd ady diq mbf lzh bjn bis mrj alt pam ayr ace kum cak
    tpi kea pck mni hak nov amp kas ido rcf mdf rop efi ike lfn kng abk zom vec dsb apc loz tly syc olo shi
    hwc kab cor awa mos lbe krl gaa tzo mam gil tet ext hmr kua rup tzh abs acn kos nhu aln vep tiv szy ewe
    tlh frr bru yua cmo vol gos gcf poh tvl taq avk knc iso cac qug hmo btx fon luo pon ach quc cop smn sma
    dyu chk quz ium abt mps ssw xmf swg mah rmc pnt trv bts tog rar wal nzi jac mnw sus arn guw ify naq yap
    fuf crn acr pdt lub jbo ubu dhv kmb fuv quy mup tcy min aoj lld hus sat xal bku sgs tzm glv koi krj hnj
    nch kek gur cha aak sms amu tzj meu nog ewo ile bba pau bem kik jra tab brx mzn rad dtp gym kdr doi bhl
    aau mbt bci ami sua kmg ffm sgc med cnk mad cuk lki ksw xav aaz acd bvz agu tbz kpg tlf avu fkv chu wes
    zai toi her acf ape dar smj nyn jvn xla ada aeu kmh dik bnp gfk ksd rwo bvr mux nhe mbb kwn ptu stq maa
    dwr msy bqc mpx zpz rug alz gum yss nhw knv dob nia yrk nak zpu dad gul tpz khs xsm boj lrc lua agg dak
    nyu atj mjw dnj knj bmh njo aii qve bum nah niu mfq zty hla swc dyi ded mag zyp seh ata nas aso lid kam
    lhu kyq sps bjv tuc ote bbr mrw byr mop nbl gnn maq hns gnd mwq cab pjt xsi top yal tok mif kwy xon kjh
    lgg mhx nqo sop muh hui kbp ppk dig yuj klv aom yby adj bsn dgz fuh tbc urk vmw mqb lex tbg bin cco txu
    otq sid rmo vap viv bdd miq gux agn bon cbc cya ngu aey ixl cok gbi myy des gui kpr byx ipi lee wrk chz
    kkj ndc mlp jbu kqp tac abx dop tuo chd cav sny jae cbu tfr twu bib zpa dww cgc tee pma dah mcu zia pir
    sja bzh aai qxh agx blh ljp hto abq sig bmu mdy kup ntu sas irk bao cas kto gvl thl itv skg zpl nij pri
    mfi teo ntr blk cbs amm crx umb yon nho ncj bgr bfd gde qwh urh sim kkc gmv mak lac npy tca kpw tay quf
    uvh kyc bas mgr buk quh meq tos bpr imo aby mtp toj sdc ifk gbo tif sue acu tnn fat cwt ura mva ozm smk
    sur aji esk blz yle pad kwi mhl yli ikt isd sbl guc xtn yml bno bss heg koo kyz qub sml snp gaw mxb trn
    men tby rej mpp bmr opm enb kez bch usp cnt csy aly wos knk mkn mzw car nhi izr mcq xrb inb cko kwj mmx
    ksr spy lef apr khz ztq kmo bjr cso biv myw lia dgi pwn nii djr sgb zne spp noa bud coe soq wim tvk vun
    cce mmo agr leu nwi mco ayp zyb gvf emp fal kmu sbe rtm nfr yuw uvl nod hig hrx mox mwv heh ppo akp mmn
    hag rme gog cbv pah zpv vmy qvn mer ong mnk swp fuq mil kms kew pag dyo thk kpe alp mfz kbm gso suk taj
    kjs kze rai kwd kpz gof atb nop grt zat kbr cax knf gun lam ter qvs yom keo kqn qvh kud kqw maz ifb agm
    cui bzi alq cpy sll gor dgc caf tsz skr qvm kgp mek agd lsm mbl wrs zpm ubr ceg bgt gng mee aoi gcr wuv
    tte zpc snc rro tpt cta row hay kus mxp ctp otm bdh nrf qvz ziw dua kij kdi mbi toh att kki chf eza aia
    lmp cjp nnb caa gub kue amn nca xbi ojb wnc cle mej jiv roo cni bjp apb gai gdn dts lue yao kpf ctu llg
    nba lbb usa nuy tcf wer mau azg pwg sgz kxc sab nyo lww yut zar auy guo mxq kao qvw rnd tsc sgw pab nsn
    mxt ted cpa kix esu wbp bus lmk mpm nhy dgr ssg pao nbq mbh ken snf kyf otw chr spl bef quw tsg big tgp
    txq mwp crm akb nin nsu geb bim kca bgs nki tbo ino gnw zab mti tiy kpx ncx guh tnp crk zac cek ptp nss
    bvd ese bhp ncl mcd kde gkn mas apy kwf mur tnk naf mav lcm cap awx omw war iws tcs rav bug caq emi gam
    wsk cuc qup cbi iou mbs nim kne mic ttq kzj mie ybb nou npl mca tod ibg tkr kss apz xsr chw pis nus nhg
    bqp mxv yre kje trp cao cbr rkb blw msb tum kvn guk kbc tgo plu mqj suz enq udu lif bzd mvp nif adz pls
    qxr yrb bbb okv tim tll ota luc aca ckt msk hot snn moh qvi dga pot vid too nab trc urt xtd avt rng zos
    lsi bpy kbh idu trq bzj mbc hub cof fai enl ain amr mio mto izz nbu xed ogo eve xmv nyy bbj zaa bfo tkl
    yaq upv hae arl ncu eko eri ttc akh apn wnu cut bps kkl mna rmq ngl mbj wmw qvc csw nct bsq faa zas mih
    beq bhg qxn rgu huv apu cto hnn zpo kyg lcp nmf cwe tew tsw ssd ame ndh myk liv tav poi kqc tna lln kdl
    mcp tdx cnw rml toc etr mgh kri far ccp lbj amk kgk atd gvn pem mza zaw agt bco zpt ifu nph sxb miy czt
    arq lud gdg ikk ake kub srr clu amx whk azz myu xsu cbt tuf kdc tku mks bkd tue apw plw wiu sda nhr miz
    aoz nko wbm zgh yva mjc yam syb wed sil kqe yka loq mib lwg btd mit cnl blt huu soy pbb zao dng ige aer
    atg klt wls cpb icr sba swb dhm mwc cag laj nuj prf cpc hix guz pui ria ycn kaq mwn gdr nnq dsh anv tke
    spm nkf aba not ann bwd bav auc rap kny xtm sey sxn mck mir kjb kog ikw jic kbq lbk lew zae myx ngp cux
    qul box gwi prg maj mcf fub yaa gyr mlh ian kmm shp waj ade nyf ish vmk bhw law kxm kck zav kqf gah yad
    ktj gnb ahk kxw zpi qxl dje ati wmt for pio abz poy ign mrq kgr hch cme mig ajg drg pib nhx abn cpu tmd
    tob mim cub dln rel ktu mqy qxo ons cri suc muy oke cjv srq bla mrg bsp xuo mhw twx lwo kei ghs nsm yan
    pmf boa uth con mta pne mfy srm llb zsr wlx mcb kff wap tih ebk tbl dnw kmy gqr amf plg aui any bcw got
    kyu ksp mzz ksc kvg wib leh nlg ncq var bxh mlu ood daa ttj cjo bmk orv neb tar pov nfa xmm ldi snw taw
    nhk wlv kcg dur mpt njm njb daf fue lip whg mhi ddg bwu frd sgh are njn dru cot zdj zad nmo stp omb ruf
    nio bdq crl arp msc cul ker mfh cjk sdq fan kmk fud moa kgf uri esi ses mzk qus tlb sby tpw tpp cjs sck
    swk obo mhy adh mbd lgl djk mph maw qva chq oto vag lnd nlc pmq otd old wba hvn duo mtg lai szb mns kak
    ntp zpq kru nnw iqw nav bqj mgm mkl cdf tem xsb tuv biu pww mnb zca xog smt dug pse dks ury tnc rub zpj
    way rjs kpj gjn niy apt stn naw alj poe lun adi guq nmw otn mog rhg tap kmd gvc tro cly kqo jmc nre ots
    mcn tui tmc nzm mip btt nnp dtb sri lap nbc sdo pfe yim shu bth ktm diu mtj tpm ifa yup bmq kno hop lem
    bgz mda bkl kzf ssx ife bkv mpg vut mzh awb ivb qvo krx nnh moc kbo wsg aim goa kvj tqo eto nma wob gbr
    wwa myb mrv trs pxm lhi met urw gej rnl pkb bhz yrl ndz nri giz mwm kle nst nmz sfw bea sju bsc pss byv
    nla gwr nse crt iri ksj fmu mny sld dhg pmx mev awi gud etu ilb ajz cho tpa did anm hav hra kia mgo kby
    npo oym dip nwb tcc ndj lom bvc rim maf loe sjo atq mor hlt ktz guu dis zpg mvn cou wat led log due mgc
    mus pbi tik bex kqs kdj lob avn mfk enx kpq mug shk chj mfg nbe csk knx bbk crj zam fad mua ddn ndi bkq
    gya kqy kex cgg niq urb eka xbr lis nsa jaa prq kzn vot khy ivv tnr mzl dos abi tlj mzm dbq kql ngb dow
    dty nxd gna iry njz lgm kuj tig khq ayo kdh ksb ess twb pps agw yuz bom bov nng tbk tul max adl phm nwx
    mnx ldn yas lol ktb ksf nyk ngc wew mse nuz pos sbs asg sbd jun xnn soe mnf lea saj bnj pny aha tzl bmv
    mkz bwi ald hoc bwq nhd nnl pbc
    """.split()
)

ALL = PHASE2 + ADDED_LAST

# What evaluations are reported by: English, languages seen from the start, those that phase 2 and the last phase add.
GROUPS = {
    "english": (ENGLISH,),
    "code": (CODE,),
    "phase1": PHASE1[1:],
    "phase2": ADDED_IN_PHASE_2,
    "last": ADDED_LAST,
}
