"""Words and sentence patterns of every training language, written for this package.

Data only: `texts` combines it. Pseudo-words are built from `onsets`, `nuclei` and `codas`, the language's own spelling
of possible syllables, because an encoder trained on a few hundred real words learns the words instead of the sounds.
Nouns carry their article or particle, so that any slot filler fits any pattern without inflection.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """One language: slot fillers, patterns over them, whole sentences, and the parts of a syllable.

    `patterns` hold {subject}, {verb}, {object}, {place}, {time}, {name}, {number}. `comma`, `stop` and `question` are
    the punctuation marks, `space` is what stands between words.
    """

    subjects: tuple[str, ...]
    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]
    times: tuple[str, ...]
    names: tuple[str, ...]
    patterns: tuple[str, ...]
    questions: tuple[str, ...]
    sentences: tuple[str, ...]
    onsets: tuple[str, ...]
    nuclei: tuple[str, ...]
    codas: tuple[str, ...]
    space: str = " "
    comma: str = ","
    stop: str = "."
    question: str = "?"


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


ENGLISH = Phrases(
    subjects=_split(
        "my mother|the old farmer|our neighbour|a young woman|the captain|nobody|the quiet boy|her best friend|"
        "the pilot|every visitor|the fox|a famous baker|the judge|his uncle|the whole village|someone"
    ),
    verbs=_split(
        "bought|found|remembers|paints|will never forget|watches|brought|measured|wants to move|throws away|"
        "is choosing|broke|loves|should fix|keeps|pushed|has already used|thought about"
    ),
    objects=_split(
        "a big blue umbrella|the wooden fence|five fresh oranges|the map of the valley|a cup of coffee|"
        "this old machine|"
        "the yellow boat|a beautiful vase|both books|their favourite song|warm bread and butter|the broken zipper|"
        "a pair of thick gloves|the television|a bowl of mushrooms|that huge elephant|the usual question|a cheap watch"
    ),
    places=_split(
        "by the harbour|in the park|behind the factory|under the bridge|at home|on the roof|near the river|"
        "in the middle of the room|at the top of the tower|outside|along the beach|in the kitchen"
    ),
    times=_split(
        "yesterday afternoon|every evening|before the storm|on Thursday|after breakfast|last June|right now|"
        "at midnight|once a month|for a while|tomorrow morning|during the voyage"
    ),
    names=_split("Peter|Amy|Joseph|Margaret|Bob|Vivian|George|Fiona|Hugo|Wendy|Thomas|Zoe|Philip|Beth"),
    patterns=_split(
        "{time}, {subject} {verb} {object}|{subject} {verb} {object} {place}|{name} {verb} {object} {time}|"
        "{name} and {subject} met {place} {time}|{number} people waited {place}|"
        "{subject} {verb} {object}, but {name} does not know why|in the year {number}, {name} lived {place}|"
        "I believe that {subject} {verb} {object}|no, {subject} {verb} {number} of them|oh my, look at {object} {place}"
    ),
    questions=_split(
        "do you know why {subject} {verb} {object}|where is {object}|who was {place} {time}|"
        "would you give {object} to {name}|how much is {number} plus {number}|is {name} {place}"
    ),
    sentences=_split(
        "good morning everyone, and welcome to the show|thank you for watching, and see you next time|"
        "open your mouth and say ah, please|today we talk about music, memory and machines|"
        "the moon is bright and the wolves are howling|above all, never give up on your dreams|"
        "five brave women found a hidden path|we were very happy about the weather|please push the purple button|"
        "mama, papa, baby|who would ever choose to move so far away|I think the third thing is worth thinking about|"
        "be back before five|whether you agree or not, the show goes on|maybe it was just a joyful measure of jazz"
    ),
    onsets=_split(
        "b|c|d|f|g|h|j|k|l|m|n|p|r|s|t|v|w|y|z|sh|ch|th|br|pl|st|kr|bl|dr|fl|gr|pr|sl|sm|sp|tr|tw|qu|str|scr|m|b|p|f|v|"
    ),
    nuclei=_split("a|e|i|o|u|ee|oo|ou|ai|ow|oy|ar|or|er|igh|oa|ea|aw|ay|air|ear"),
    codas=_split("|||n|m|t|p|b|l|s|r|k|ng|sh|ch|th|st|nd|mp|ft|x|g|v|ve|dge|ck"),
)

GERMAN = Phrases(
    subjects=_split(
        "meine Mutter|der alte Bäcker|unser Nachbar|die junge Ärztin|das Mädchen|der Kapitän|niemand|ein kluger Fuchs|"
        "die ganze Familie|mein Freund|der Zauberer|jeder Besucher|eine berühmte Sängerin|der Pförtner"
    ),
    verbs=_split(
        "kauft|sucht|vergisst nie|beobachtet|bringt|zeigt mir|versteckt|möchte|öffnet|wäscht|zeichnet|liebt|verkauft|"
        "überprüft|braucht|hört"
    ),
    objects=_split(
        "einen roten Apfel|das grüne Fahrrad|die schöne Musik|zwölf frische Brötchen|den hohen Turm|ein altes Märchen|"
        "die Küche|den blauen Koffer|das Pferd|eine Tasse Kaffee|die Wahrheit|viele Vögel|das Gemüse|einen Kopfhörer|"
        "die Zeitung|den Löwen|eure Bücher|ein Stück Kuchen"
    ),
    places=_split(
        "am Bahnhof|im Garten|hinter dem Haus|auf der Brücke|in München|unter dem Baum|bei uns|über den Wolken|"
        "an der Küste|im Wald|neben dem Rathaus|zu Hause"
    ),
    times=_split(
        "heute|gestern Abend|jeden Morgen|am Donnerstag|vor dem Frühstück|im Sommer|manchmal|um Mitternacht|"
        "nächstes Jahr|früher|seit zwei Wochen|pünktlich"
    ),
    names=_split("Jürgen|Sophie|Bernd|Käthe|Wolfgang|Ute|Philipp|Greta|Matthias|Eva|Björn|Paula"),
    patterns=_split(
        "{time} {verb} {subject} {object}|{subject} {verb} {object} {place}|{name} {verb} {time} {object}|"
        "{number} Leute warten {place}|ich glaube, {subject} {verb} {object}|{name} und {name} treffen sich {place}|"
        "im Jahr {number} lebte {name} {place}|{subject} {verb} {object}, aber {name} weiß es nicht"
    ),
    questions=_split(
        "wo ist {name}|kannst du {object} mitbringen|warum {verb} {subject} {object}|"
        "wie viel ist {number} plus {number}|"
        "wer {verb} {object} {place}|ist {name} {time} {place}"
    ),
    sentences=_split(
        "guten Morgen, meine Damen und Herren, willkommen zu unserer Sendung|Übung macht den Meister|"
        "vielen Dank fürs Zuschauen und bis zum nächsten Mal|wir sprechen über das Wetter und die Natur|"
        "bitte öffnen Sie den Mund|Papa, Mama, Baby|der Apfelbaum blüht im Frühling|ich möchte ein Pfund Pflaumen|"
        "wir haben wunderbare Musik gehört|ach, das ist ja furchtbar schön|viele böse Wölfe heulen nachts"
    ),
    onsets=_split("b|d|f|g|h|j|k|l|m|n|p|r|s|t|w|z|sch|pf|br|bl|kl|kn|fr|gr|schw|st|sp|tr|pr|zw|qu|v|m|b|p|f|"),
    nuclei=_split("a|e|i|o|u|ä|ö|ü|ei|au|eu|ie|ah|oh|uh|äu|aa|öh|üh|eh"),
    codas=_split("|||n|m|t|l|s|r|ch|ng|nd|st|pf|k|tz|f|p|en|er|el|mpf|cht"),
)

SPANISH = Phrases(
    subjects=_split(
        "mi hermano|la abuela|el capitán|una mujer joven|el viejo pescador|nadie|la maestra|nuestro vecino|el niño|"
        "toda la familia|la reina|un famoso pintor|el zorro|cada visitante"
    ),
    verbs=_split(
        "compró|busca|olvida|mira|trajo|quiere|encontró|pinta|rompió|vende|abre|prefiere|lleva|escucha|empuja|guarda"
    ),
    objects=_split(
        "una bicicleta roja|el pan caliente|la llave de la puerta|cinco naranjas|un libro viejo|la montaña azul|"
        "el queso fresco|una taza de café|los zapatos nuevos|la guitarra|el pequeño barco|un juguete|la verdad|"
        "muchas flores|el jabón|una bolsa de papel"
    ),
    places=_split(
        "en la plaza|cerca del río|detrás de la fábrica|en el jardín|bajo el puente|en casa|junto al mar|"
        "sobre la mesa|en el pueblo|por la calle|al lado de la iglesia"
    ),
    times=_split(
        "ayer por la noche|cada mañana|el jueves|antes de la lluvia|después de comer|en junio|ahora|a medianoche|"
        "una vez al mes|hoy|durante el viaje"
    ),
    names=_split("Pablo|María|Javier|Beatriz|Miguel|Lucía|Felipe|Ximena|Jorge|Valeria|Guillermo|Rosa"),
    patterns=_split(
        "{time} {subject} {verb} {object}|{subject} {verb} {object} {place}|{name} {verb} {object} {time}|"
        "{number} personas esperan {place}|creo que {subject} {verb} {object}|{name} y {name} viven {place}|"
        "en el año {number}, {name} vivió {place}|{subject} {verb} {object}, pero {name} no lo sabe"
    ),
    questions=_split(
        "dónde está {name}|por qué {subject} {verb} {object}|quién {verb} {object} {place}|"
        "cuánto es {number} más {number}|puedes traer {object}, por favor"
    ),
    sentences=_split(
        "buenos días, bienvenidos a nuestro programa|muchas gracias por ver este video|mamá, papá, bebé|"
        "la paloma blanca vuela sobre el mar profundo|hoy vamos a hablar de la música y de la memoria|"
        "el pingüino bebe agua fría|me gusta mucho el chocolate|la lluvia llegó muy tarde|vamos a bailar toda la noche"
    ),
    onsets=_split("b|c|d|f|g|j|l|ll|m|n|ñ|p|r|s|t|v|y|ch|br|bl|cr|tr|pl|pr|fl|gr|dr|z|qu|gu|m|b|p|f|"),
    nuclei=_split("a|e|i|o|u|ia|ie|ue|ua|io|ai|ei|au|á|é|ó|a|e|o"),
    codas=_split("||||n|s|r|l|d|m|z"),
)

FRENCH = Phrases(
    subjects=_split(
        "ma petite soeur|le vieux pêcheur|mon voisin|une jeune femme|le boulanger|personne ne|la reine|notre ami|"
        "le professeur|un grand peintre|la famille|ce garçon|le juge|chaque visiteur"
    ),
    verbs=_split(
        "achète|cherche|oublie|regarde|apporte|veut|trouve|peint|casse|vend|ouvre|préfère|porte|écoute|pousse|garde"
    ),
    objects=_split(
        "une pomme rouge|le pain frais|la clé du bureau|cinq oranges|un bon vin blanc|la montagne bleue|le fromage|"
        "une tasse de café|les chaussures neuves|la guitare|un parapluie jaune|le vieux bateau|la vérité|des fleurs|"
        "un oeuf|une feuille de papier|le brouillard"
    ),
    places=_split(
        "sur la plage|près du fleuve|derrière l'usine|dans le jardin|sous le pont|à la maison|au bord de la mer|"
        "en ville|dans la rue|au milieu de la cuisine|vers le port"
    ),
    times=_split(
        "hier soir|ce matin|chaque jeudi|avant la pluie|après le déjeuner|en juin|maintenant|à minuit|aujourd'hui|"
        "une fois par mois|demain"
    ),
    names=_split("Pierre|Amélie|François|Béatrice|Hugues|Manon|Julien|Véronique|Guillaume|Chloé|Baptiste|Yvonne"),
    patterns=_split(
        "{time}, {subject} {verb} {object}|{subject} {verb} {object} {place}|{name} {verb} {object} {time}|"
        "{number} personnes attendent {place}|je crois que {subject} {verb} {object}|{name} et {name} habitent {place}|"
        "en {number}, {name} vivait {place}|{subject} {verb} {object}, mais {name} ne le sait pas"
    ),
    questions=_split(
        "où est {name}|pourquoi {subject} {verb} {object}|qui {verb} {object} {place}|"
        "combien font {number} plus {number}|"
        "pouvez-vous apporter {object}, s'il vous plaît"
    ),
    sentences=_split(
        "bonjour à tous et bienvenue dans notre émission|merci beaucoup et à bientôt|maman, papa, bébé|"
        "il fait très beau sur la plage ce matin|aujourd'hui nous parlons de la musique et du cinéma|"
        "le vieux bateau revient doucement vers le port|un peu de lumière bleue brille au loin|"
        "ouvrez la bouche et dites ah|les oiseaux chantent dans la campagne|huit nuits de bruit"
    ),
    onsets=_split("b|c|d|f|g|j|l|m|n|p|r|s|t|v|ch|gn|br|bl|cr|tr|pl|pr|fl|gr|vr|z|qu|m|b|p|f|"),
    nuclei=_split("a|e|i|o|u|ou|oi|ai|eu|é|è|au|an|on|in|un|en|ui|eau|ien|œu|ille"),
    codas=_split("|||||r|l|s|c|f|m|ne|que|che|ge|ve"),
)

PORTUGUESE = Phrases(
    subjects=_split(
        "minha mãe|o velho pescador|nosso vizinho|uma jovem mulher|o padeiro|ninguém|a rainha|meu irmão|o professor|"
        "um grande pintor|a família|o menino|cada visitante"
    ),
    verbs=_split(
        "comprou|procura|esquece|olha|trouxe|quer|encontrou|pinta|quebrou|vende|abre|prefere|leva|escuta|guarda"
    ),
    objects=_split(
        "um belo vestido azul|o pão quente|a chave da porta|cinco laranjas|um livro velho|a montanha|o queijo fresco|"
        "uma xícara de café|os sapatos novos|o violão|um guarda-chuva|o pequeno barco|a verdade|muitas flores|o feijão"
    ),
    places=_split(
        "na praça|perto do rio|atrás da fábrica|no jardim|embaixo da ponte|em casa|junto ao mar|em cima da mesa|"
        "na rua|ao lado da igreja"
    ),
    times=_split("ontem à noite|toda manhã|na quinta-feira|antes da chuva|depois do almoço|em junho|agora|hoje|amanhã"),
    names=_split("João|Mariana|Felipe|Beatriz|Guilherme|Conceição|Tiago|Luiza|Paulo|Vitória"),
    patterns=_split(
        "{time}, {subject} {verb} {object}|{subject} {verb} {object} {place}|{name} {verb} {object} {time}|"
        "{number} pessoas esperam {place}|acho que {subject} {verb} {object}|{name} e {name} moram {place}"
    ),
    questions=_split(
        "onde está {name}|por que {subject} {verb} {object}|quem {verb} {object} {place}|você pode trazer {object}"
    ),
    sentences=_split(
        "bom dia a todos e bem-vindos ao nosso programa|muito obrigado e até logo|mamãe, papai, bebê|"
        "hoje vamos falar sobre música, memória e tecnologia|o menino brinca com a bola vermelha no jardim|"
        "não faz mal, vamos amanhã|a chuva molhou o meu chapéu"
    ),
    onsets=_split("b|c|d|f|g|j|l|m|n|p|r|s|t|v|ch|lh|nh|br|bl|cr|tr|pl|pr|fl|gr|z|qu|m|b|p|f|"),
    nuclei=_split("a|e|i|o|u|ai|ei|ou|ão|ã|é|ó|ê|ô|õe|au|ia|io|a|e|o"),
    codas=_split("|||||r|l|s|m|n"),
)

ITALIAN = Phrases(
    subjects=_split(
        "mio fratello|la nonna|il capitano|una giovane donna|il vecchio pescatore|nessuno|la maestra|il nostro vicino|"
        "il bambino|tutta la famiglia|la regina|un famoso pittore|lo zio"
    ),
    verbs=_split(
        "ha comprato|cerca|dimentica|guarda|porta|vuole|ha trovato|dipinge|rompe|vende|apre|preferisce|ascolta"
    ),
    objects=_split(
        "una bella bicicletta blu|il pane caldo|la chiave della porta|cinque arance|un vecchio libro|la montagna|"
        "il formaggio|una tazza di caffè|le scarpe nuove|la chitarra|un ombrello giallo|la verità|gli gnocchi|"
        "molti fiori|il cappello rosso|uno specchio"
    ),
    places=_split(
        "sulla spiaggia|vicino al fiume|dietro la fabbrica|nel giardino|sotto il ponte|a casa|in mezzo alla piazza|"
        "sul tetto|in cucina|davanti alla chiesa"
    ),
    times=_split("ieri sera|ogni mattina|giovedì|prima della pioggia|dopo pranzo|a giugno|adesso|a mezzanotte|oggi"),
    names=_split("Giuseppe|Beatrice|Paolo|Chiara|Filippo|Mariangela|Giovanni|Viola|Ugo|Francesca"),
    patterns=_split(
        "{time} {subject} {verb} {object}|{subject} {verb} {object} {place}|{name} {verb} {object} {time}|"
        "{number} persone aspettano {place}|credo che {subject} {verb} {object}|{name} e {name} vivono {place}"
    ),
    questions=_split(
        "dove è {name}|perché {subject} {verb} {object}|chi {verb} {object} {place}|puoi portare {object}"
    ),
    sentences=_split(
        "buongiorno a tutti e benvenuti al nostro programma|grazie mille e arrivederci|mamma, papà, bimbo|"
        "oggi parliamo di musica, memoria e montagne|il bambino mangia una mela rossa|"
        "puoi aprire la finestra, per favore|"
        "che bella giornata di sole"
    ),
    onsets=_split("b|c|d|f|g|l|m|n|p|r|s|t|v|ch|gl|gn|br|bl|cr|tr|pl|pr|fr|gr|z|qu|sc|gi|ci|mm|pp|bb|tt|"),
    nuclei=_split("a|e|i|o|u|ia|ie|uo|ua|io|ai|ei|au|a|e|o"),
    codas=_split("||||||n|l|r|m"),
)

MANDARIN = Phrases(
    subjects=_split("妈妈|老师|我的朋友|那个孩子|爷爷|邻居|一位女医生|船长|没有人|大家|小狐狸|每个客人|他|我们"),
    verbs=_split("买了|喜欢|忘记了|看见|带来了|想要|找到了|画|打破了|卖掉|打开|保护|穿上|推开|听着|需要"),
    objects=_split(
        "一把蓝色的雨伞|新鲜的面包|五个苹果|那本旧书|一杯咖啡|漂亮的花|黄色的小船|两只白鸽子|热水|一双鞋|那座高山|"
        "很多蘑菇|电脑|一幅地图|蛋糕|牛肉面|葡萄|绿茶"
    ),
    places=_split("在公园里|在河边|在工厂后面|在家里|在桥下|在学校|在房顶上|在厨房|在海边|在火车站|在北京"),
    times=_split("昨天下午|每天晚上|星期四|下雨以前|早饭以后|去年六月|现在|半夜|明天早上|有时候|刚才"),
    names=_split("小明|王芳|李伟|张丽|陈波|刘玉|赵鹏|孙红|周杰|吴月|徐飞|马超"),
    patterns=_split(
        "{time}{subject}{place}{verb}{object}|{subject}{verb}{object}|{name}{time}{verb}{object}|"
        "{number}个人{place}等着|我觉得{subject}{verb}{object}|{name}和{name}{place}见面|"
        "{subject}{verb}{object}，可是{name}不知道|在{number}年，{name}{place}工作"
    ),
    questions=_split(
        "{name}在哪里|为什么{subject}{verb}{object}|谁{place}{verb}{object}|你要不要{object}|{subject}{time}来吗"
    ),
    sentences=_split(
        "大家好，欢迎收看我们的节目|谢谢观看，再见|今天天气非常好，我们一起去散步吧|请把嘴巴张开|"
        "爸爸妈妈都很高兴|我不知道明天会不会下雨|学习中文和音乐很有意思|月亮又圆又亮|别怕，慢慢说|乌龟跑不过兔子"
    ),
    onsets=tuple(
        "八爸白百半帮包宝杯北本鼻比边表别病波不步擦才菜草层茶长超车成吃虫出船窗春词从错大带单刀到得灯地点电丢东读对多"
        "饿儿耳发反方飞风佛夫高哥给跟工狗古瓜怪关光国过哈海喊好喝河黑很红后呼花话欢黄回火鸡家间交姐今进九旧居卷觉军开看"
        "靠可坑空口哭快宽狂困拉来蓝老乐冷里两林六龙楼路乱轮罗绿妈买慢忙猫没门梦米面秒名摸某木拿奶南脑你年鸟您牛农女暖"
        "怕拍盘跑配盆朋皮片票品平破铺七前强桥亲轻穷秋去全群然让热人日肉如软三色森山伤少蛇身生十手书水说四松送诉酸岁所"
        "他太谈糖特疼题天跳听通头土团推外玩王为文我五西下先想小谢新星雄休需学雪压烟羊药也一音英用友鱼远月云再早怎站张"
        "找这真正只中周主抓专装准桌字走租最昨做思死自次"
    ),
    nuclei=("",),
    codas=("",),
    space="",
    comma="，",
    stop="。",
    question="？",
)

JAPANESE = Phrases(
    subjects=_split(
        "わたしは|ともだちは|せんせいが|ちいさな おとこのこが|おばあさんは|となりの ひとが|ふねの せんちょうは|"
        "だれかが|きつねは|みんなが|あかちゃんは|おとうとが"
    ),
    verbs=_split(
        "かいました|わすれました|みつけました|たべたいです|よんでいます|こわしました|えらびます|もってきた|"
        "ならべました|あらっています|すてないで ください|うりました|おくりました|けしました"
    ),
    objects=_split(
        "あおい かさを|やきたての パンを|ふるい ほんを|いつつの りんごを|コーヒーを|きれいな はなを|ちずを|"
        "あたらしい くつを|おおきな ぼうしを|しゃしんを|ピアノを|ぎゅうにゅうを|ふうせんを|まんがを|テレビを|ぶどうを"
    ),
    places=_split(
        "こうえんで|かわの そばで|がっこうで|いえの なかで|はしの したで|えきまえで|だいどころで|うみべで|"
        "やまの うえで|びょういんで|とうきょうで"
    ),
    times=_split(
        "きのう|まいあさ|もくようびに|あめの まえに|ごはんの あとで|きょねん|いま|よなかに|あした|ときどき|らいしゅう"
    ),
    names=_split(
        "たなかさん|ゆみこさん|ひろし|まりこ|けんた|すずきさん|やまもとさん|はるか|しょうへい|みほ|ボブ|アンナ"
    ),
    patterns=_split(
        "{time} {subject} {object} {verb}|{subject} {place} {object} {verb}|{name}は {time} {object} {verb}|"
        "{name}と {name}は {place} あいました|{subject} {object} {verb}、でも {name}は しりません|"
        "じつは {subject} {object} {verb}"
    ),
    questions=_split(
        "{name}は どこに いますか|なぜ {subject} {object} {verb}か|だれが {place} {object} {verb}か|"
        "{object} {name}に あげますか"
    ),
    sentences=_split(
        "おはよう ございます、きょうも よろしく おねがい します|ごらん いただき ありがとう ございました|"
        "きょうは とても いい てんき です ね|おんがくが だいすき です|この ほんは むずかしいけれど おもしろい|"
        "くちを おおきく あけて ください|まま、ぱぱ、ばぶ|つきが あかるく ひかって います|"
        "ひゃくまんにんの びっくり ショー|ファッションと カフェと フィルム|ゆっくり はなして ください"
    ),
    onsets=_split(
        "か|き|く|け|こ|さ|し|す|せ|そ|た|ち|つ|て|と|な|に|ぬ|ね|の|は|ひ|ふ|へ|ほ|ま|み|む|"
        "め|も|や|ゆ|よ|ら|り|る|れ|ろ|わ|が|ぎ|ぐ|げ|ご|ざ|じ|ず|ぜ|ぞ|だ|で|ど|ば|び|ぶ|べ|"
        "ぼ|ぱ|ぴ|ぷ|ぺ|ぽ|きゃ|しゅ|しょ|ちゃ|ちょ|にゃ|ひょ|みょ|りゅ|りょ|ぎゃ|じゅ|じょ|びゃ|"
        "ぴょ|ふぁ|ふぃ|あ|い|う|え|お|ま|み|む|め|も|ば|ぱ|ふ"
    ),
    nuclei=("",),
    codas=("", "", "", "", "", "ん", "っか", "う", "い", "っぱ"),
    comma="、",
    stop="。",
    question="？",
)

PHRASES: dict[str, Phrases] = {
    "en": ENGLISH,
    "cmn": MANDARIN,
    "ja": JAPANESE,
    "de": GERMAN,
    "es": SPANISH,
    "fr": FRENCH,
    "pt": PORTUGUESE,
    "it": ITALIAN,
}
