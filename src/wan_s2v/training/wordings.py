"""Other words for what a clip shows, as tables: how people ask for an expression, a movement, a place or clothes.

`prompts.describe` says everything in a few fixed ways; `free_prompts` writes prompts from these. One entry in seven is
set aside, to measure how well words are read that no training has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["trained", "held out", "all"]
_EVERY, _SET_ASIDE = 7, 3  # entry 3 of every 7 is held out
_DOUBLED = ("bob", "get", "grin", "nod", "pan", "sit", "sob", "tip", "wag")  # double their last letter before -ing


@dataclass(frozen=True)
class Entries:
    """Ways to say one thing: verbs in their base form, adjectives of a person, and clauses that stand for themselves.

    Placeholders: {her} possessive, {side} left or right.
    """

    verbs: tuple[str, ...] = ()
    adjectives: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()

    def of_side(self, side: str) -> Entries:
        return Entries(*(tuple(e.replace("{side}", side) for e in kind) for kind in self.kinds()))

    def of_part(self, part: Part) -> Entries:
        if part == "all":
            return self
        return Entries(*(tuple(e for i, e in enumerate(k) if _belongs(i, part)) for k in self.kinds()))

    def kinds(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        return self.verbs, self.adjectives, self.clauses


def _belongs(index: int, part: Part) -> bool:
    return (index % _EVERY == _SET_ASIDE) == (part == "held out")


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split("; ")) if text else ()


def _entries(verbs: str = "", adjectives: str = "", clauses: str = "") -> Entries:
    return Entries(_list(verbs), _list(adjectives), _list(clauses))


_EN_LOOK = _entries(
    "look {side}; turn {side}; face {side}; glance to the {side}; look to the {side}; turn {her} head {side}; "
    "turn {her} head to the {side}; gaze {side}; look towards the {side}; turn {her} face to the {side}; "
    "rotate {her} head to the {side}; look over to the {side} side; look away to the {side}; stare to the {side}",
    "",
    "head turned {side}; facing the {side} side; with the face to the {side}; eyes to the {side}; "
    "head to the {side}; in profile to the {side}; a turn of the head to the {side}; head turning {side}",
)
_EN_PAN = _entries(
    "pan {side}; pan to the {side}; move {side}; shift to the {side}; slide {side}; turn {side}; move to the {side}; "
    "drift {side}; track {side}; glide to the {side}; swing {side}; sweep to the {side}; travel {side}; truck {side}",
    "",
    "pan {side}; {side} pan; pan shot to the {side}; sideways to the {side}; panning {side}; camera to the {side}; "
    "slide to the {side}; tracking shot to the {side}; panning to the {side}; camera {side}",
)
ENGLISH: dict[str, dict[str, Entries]] = {
    "expression": {
        "neutral": _entries(
            "talk; speak; stay calm; keep a straight face; look relaxed; remain serious",
            "calm; neutral; relaxed; composed; serious; expressionless; unemotional; impassive; matter-of-fact",
            "with a blank face; in an even voice; without emotion; without any expression; with a normal expression; "
            "in a normal tone; not smiling; with a neutral look; with no emotion; speaking normally",
        ),
        "smiling": _entries(
            "smile; laugh; grin; giggle; beam; chuckle; smile happily; smile softly; smile at the camera; "
            "burst out laughing; light up with joy; look pleased",
            "happy; cheerful; joyful; delighted; smiling; glad; friendly; merry; laughing; amused; pleased; joyous; "
            "content; excited; good-humoured",
            "with a big smile; with a happy face; cheerfully; in high spirits; full of joy; with a bright smile; "
            "happily; with a wide grin; in a good mood; with laughter; smile on the face; radiating happiness",
        ),
        "sad": _entries(
            "cry; weep; hold back tears; sob; mourn; grieve; pout; look down in sorrow; shed tears",
            "sad; unhappy; sorrowful; gloomy; depressed; crying; melancholic; upset; heartbroken; tearful; mournful; "
            "disappointed; downcast; miserable",
            "with tears in the eyes; sadly; with sorrow; close to tears; in a sad mood; full of grief; "
            "in low spirits; with a sorrowful look; with a sad expression; with mouth corners down; with sadness",
        ),
        "surprised": _entries(
            "gasp; stare in shock; open {her} eyes wide; raise {her} eyebrows; marvel; look startled; widen {her} eyes",
            "surprised; shocked; astonished; startled; amazed; stunned; wide-eyed; astounded; bewildered; "
            "taken aback; awestruck; flabbergasted",
            "in surprise; in shock; with wide eyes; in amazement; with raised eyebrows; in disbelief; with surprise; "
            "with astonishment; as if hearing unexpected news; with a surprised look; with wide open eyes",
        ),
        "angry": _entries(
            "frown; scowl; glare; yell; shout; lose {her} temper; rage; argue; clench {her} teeth; get mad",
            "angry; furious; annoyed; irritated; mad; enraged; frowning; grumpy; outraged; hostile; fierce; cross",
            "angrily; in anger; with rage; in a bad temper; with an angry look; full of anger; furiously; "
            "with knitted brows; with fury; with an angry face; in a rage",
        ),
    },
    "head": {
        "still": _entries(
            "keep {her} head still; stay still; hold still; remain motionless; sit still; keep still; stand still; "
            "hold {her} head still; freeze",
            "motionless; unmoving",
            "without moving the head; no head movement; the head stays still; the head does not move; "
            "with a motionless head; with hardly any movement; head fixed; with a steady head; no motion of the head",
        ),
        "lively": _entries(
            "move {her} head a lot; move {her} head freely; move around; gesture with {her} head; bob {her} head; "
            "sway; move naturally; move energetically",
            "lively; energetic; animated; dynamic; expressive",
            "with lots of head movement; head moving freely; with energetic movements; with natural head movements; "
            "with a lively head; with plenty of motion; in a lively way; animatedly",
        ),
        "nodding": _entries(
            "nod; nod along; nod {her} head; nod in agreement; nod slowly; nod yes; move {her} head up and down; "
            "bow {her} head repeatedly; nod gently; agree with nods",
            "nodding",
            "with a nod; head nodding; nods of the head; head going up and down; with small nods; nodding yes; "
            "with gentle nods; nodding in approval",
        ),
        "shaking": _entries(
            "shake {her} head; shake {her} head no; move {her} head from side to side; "
            "swing {her} head left and right; turn {her} head from side to side; "
            "shake {her} head in disagreement; wag {her} head; turn {her} head left and right; "
            "move {her} head left and right",
            "",
            "head shaking; with a shake of the head; head going from side to side; with shakes of the head; "
            "head turning left and right; shaking no; shaking the head in denial; head swinging side to side",
        ),
        "looking left": _EN_LOOK.of_side("left"),
        "looking right": _EN_LOOK.of_side("right"),
        "tilting": _entries(
            "tilt {her} head; tilt {her} head to one side; lean {her} head to the side; cock {her} head; "
            "incline {her} head; tip {her} head; tilt {her} head to the left; tilt {her} head to the right; "
            "bend {her} head sideways; rest {her} head on {her} shoulder",
            "",
            "with a tilted head; head tilted; with a tilt of the head; head leaning sideways; head inclined; "
            "head at an angle; head tilted to the left; head tilted to the right; head tilt",
        ),
    },
    "camera": {
        "still": _entries(
            "stay still; stay fixed; hold still; stay in place; remain static; keep still; stay put; remain fixed",
            "",
            "static shot; locked camera; fixed camera; tripod shot; no camera movement; still camera; steady shot; "
            "locked-off shot; stationary camera; the camera does not move; without camera movement; static",
        ),
        "push in": _entries(
            "zoom in; push in; move closer; get closer; move in; dolly in; come closer; approach; track forward; "
            "zoom in on the face; close in; move forward; move towards the face; push towards the subject; creep in",
            "",
            "zoom in; push in; dolly in; zoom into the face; zoom-in; dolly-in shot; moving closer; zooming closer; "
            "forward tracking shot; getting nearer; zooming in; push-in",
        ),
        "pull out": _entries(
            "zoom out; pull out; pull back; back away; move back; move away; dolly out; retreat; track backward; "
            "move backward; draw back; widen; go back; move away from the subject",
            "",
            "zoom out; pull back; dolly out; pull-out shot; zoom-out; moving away; backward tracking shot; "
            "zooming away; widening shot; zooming out; getting farther away; dolly-out",
        ),
        "pan left": _EN_PAN.of_side("left"),
        "pan right": _EN_PAN.of_side("right"),
    },
}

_ZH_LOOK = _entries(
    "看向{side}边; 向{side}看; 往{side}看; 朝{side}看; 转向{side}边; 望向{side}边; 向{side}转头; 看{side}边; "
    "脸朝{side}; 面朝{side}边; 头向{side}转; 往{side}边转头; 头转向{side}侧; 目光看向{side}侧; 扭头看{side}边; "
    "把头转向{side}边"
)
_ZH_PAN = _entries(
    "向{side}平移; {side}移; 向{side}移动; 往{side}平移; 向{side}摇; {side}摇; 往{side}移动; 朝{side}移动; "
    "向{side}滑动; 摇向{side}边; 移向{side}侧; 向{side}转动; 朝{side}边摇; 往{side}摇",
    "",
    "向{side}摇镜; {side}摇镜头; {side}移镜头; 横移向{side}; 向{side}平移镜头; 画面向{side}移; 镜头{side}移",
)
CHINESE: dict[str, dict[str, Entries]] = {
    "expression": {
        "neutral": _entries(
            "说话; 讲话; 面无表情; 没有表情; 语气平静; 神态自若; 心平气和; 语气平淡; 正常说话; 不带感情; 表情普通",
            "平静; 自然; 冷静; 淡定; 严肃; 从容; 平和; 沉着; 镇定; 放松",
        ),
        "smiling": _entries(
            "微笑; 大笑; 笑着; 露出笑容; 面带笑容; 笑容满面; 笑眯眯; 咧嘴笑; 哈哈大笑; 面露微笑; 眉开眼笑; "
            "笑得很开心; 嘴角上扬; 带着笑意; 心情很好",
            "开心; 高兴; 快乐; 愉快; 喜悦; 欢乐; 幸福; 兴高采烈; 欣喜; 友好; 乐呵呵",
        ),
        "sad": _entries(
            "哭泣; 流泪; 哭着; 眼含泪水; 愁眉苦脸; 快要哭了; 含着眼泪; 心情低落; 满脸愁容; 泪流满面; 嘴角下垂; "
            "不开心; 伤感",
            "悲伤; 难过; 伤心; 忧伤; 沮丧; 忧郁; 痛苦; 哀伤; 低落; 失望; 悲痛",
        ),
        "surprised": _entries(
            "瞪大眼睛; 睁大双眼; 目瞪口呆; 大吃一惊; 扬起眉毛; 感到意外; 吓了一跳; 难以置信; 不敢相信; 睁大眼睛; "
            "惊呆了",
            "惊讶; 吃惊; 震惊; 惊奇; 诧异; 惊愕; 意外; 惊异",
        ),
        "angry": _entries(
            "发火; 怒视; 皱眉; 发脾气; 怒气冲冲; 大声怒吼; 咬牙切齿; 火冒三丈; 怒目而视; 皱着眉头; 气冲冲; 发怒",
            "愤怒; 生气; 恼火; 气愤; 暴怒; 愤慨; 恼怒; 不满; 凶狠",
        ),
    },
    "head": {
        "still": _entries(
            "头不动; 保持静止; 一动不动; 头部静止; 头部固定; 身体不动; 没有头部动作; 保持头部稳定; 几乎没有动作; "
            "安静不动"
        ),
        "lively": _entries(
            "头部动作很多; 动作活泼; 头部自由摆动; 动作丰富; 头动来动去; 头部自然摆动; 有丰富的动作; 动作自然; "
            "活泼地晃动",
            "活泼; 生动",
        ),
        "nodding": _entries(
            "点头; 频频点头; 点点头; 连连点头; 不停地点头; 轻轻点头; 微微点头; 点头同意; 头上下摆动; 点头表示赞同; "
            "上下点头"
        ),
        "shaking": _entries(
            "摇头; 摇摇头; 不停地摇头; 连连摇头; 微微摇头; 摇头否认; 左右摇头; 头左右摆动; 左右晃动头部; "
            "摇头表示不同意; 慢慢摇头"
        ),
        "looking left": _ZH_LOOK.of_side("左"),
        "looking right": _ZH_LOOK.of_side("右"),
        "tilting": _entries(
            "歪头; 歪着脑袋; 侧着头; 偏着头; 头歪向一边; 头部倾斜; 斜着头; 把头偏向一侧; 头微微倾斜; 侧头; 头歪着; "
            "歪着头看"
        ),
    },
    "camera": {
        "still": _entries(
            "不动; 静止; 固定不动; 保持不动; 保持静止; 保持固定; 稳定不动",
            "",
            "固定机位; 静态镜头; 静止镜头; 没有镜头运动; 定机位; 固定拍摄; 镜头不移动; 固定视角",
        ),
        "push in": _entries(
            "拉近; 推近; 推进; 靠近; 放大; 前推; 前移; 向前推; 向前移动; 往前推; 逼近; 推向脸部; 向人物靠近; "
            "往前移动; 推到面前",
            "",
            "推镜头; 推近镜头; 拉近镜头; 由远及近; 变焦放大; 放大画面; 推进镜头; 向前推镜",
        ),
        "pull out": _entries(
            "拉远; 后退; 后拉; 远离; 缩小; 后移; 向后拉; 向后移动; 往后退; 退后; 拉开; 逐渐远离; 往后移动",
            "",
            "拉镜头; 拉远镜头; 由近及远; 后退镜头; 缩小画面; 变焦缩小; 向后拉镜; 拉开距离",
        ),
        "pan left": _ZH_PAN.of_side("左"),
        "pan right": _ZH_PAN.of_side("右"),
    },
}

ENGLISH_TEMPLATES = {  # {v}: base form, {vs}: she …s, {ing}: …ing
    "verbs": ("{she} {vs}", "{she} is {ing}", "{ing}", "while {ing}", "{v}", "{she} {vs} while speaking", "{she} {ing}",
              "{ing} and talking", "speaking and {ing}"),
    "adjectives": ("a {x} {woman}", "{she} looks {x}", "looking {x}", "{she} is {x}", "with a {x} face", "{x}",
                   "with a {x} expression", "{she} seems {x}", "feeling {x}", "very {x}", "{x} {woman}"),
    "clauses": ("{x}", "{she} talks {x}", "speaking {x}", "{x}"),
    "head clauses": ("{x}", "{x}", "{she} talks, {x}"),
    "camera verbs": ("the camera {vs}", "the camera slowly {vs}", "the camera {vs} slowly", "camera {vs}",
                     "camera {ing}", "the camera is {ing}", "with the camera {ing}", "as the camera {vs}",
                     "the shot {vs}", "the view slowly {vs}", "camera: {v}", "let the camera {v}"),
    "camera clauses": ("{x}", "{x}", "slow {x}", "{x} slowly", "slowly {x}", "gentle {x}", "smooth {x}", "camera {x}"),
}  # fmt: skip
CHINESE_TEMPLATES = {
    "verbs": ("{x}", "{she}{x}", "{woman}{x}", "一边说话一边{x}", "{woman}正在{x}", "{she}在{x}"),
    "adjectives": ("{x}的{woman}", "{x}地说话", "表情{x}", "神情{x}", "看起来很{x}", "{she}很{x}", "{x}", "显得{x}"),
    "clauses": ("{x}",),
    "head clauses": ("{x}",),
    "camera verbs": ("镜头{x}", "镜头慢慢{x}", "镜头缓缓{x}", "镜头缓慢{x}", "镜头逐渐{x}", "画面{x}", "摄像机{x}",
                     "相机慢慢{x}", "让镜头{x}", "镜头轻轻{x}"),
    "camera clauses": ("{x}",),
}  # fmt: skip

ENGLISH_FACTS: dict[str, tuple[str, ...]] = {
    "gradient": ("a plain backdrop", "simple background", "in front of a plain wall"),
    "bokeh": ("blurred lights behind", "bokeh lights", "soft glowing lights in the background"),
    "window": ("by a window", "in front of a window", "in a bright room"),
    "shelves": ("in a library", "in front of bookshelves", "books in the background"),
    "landscape": ("outdoors, green hills behind", "in the countryside", "hills in the background"),
    "studio": ("in a studio", "studio backdrop", "in a photo studio"),
    "sunset": ("at sunset", "a city skyline at dusk", "with a sunset behind"),
    "beanie": ("wearing a beanie", "in a knitted hat", "with a woolly hat"),
    "headscarf": ("wearing a headscarf", "in a hijab", "with a scarf over the hair"),
    "glasses": ("wearing glasses", "with spectacles", "with glasses on", "eyeglasses"),
    "full": ("with a big beard", "bearded", "a full beard"),
    "moustache": ("with a mustache", "a moustache", "wearing a moustache"),
    "goatee": ("with a goatee", "a small goatee beard"),
    "t-shirt": ("t-shirt", "tee shirt", "tee"),
    "v-neck": ("v-neck sweater", "v-neck", "v-neck pullover"),
    "shirt": ("shirt", "collared shirt", "button-up shirt"),
    "turtleneck": ("turtleneck", "roll-neck sweater"),
    "jacket": ("jacket", "coat", "blazer"),
    "blouse": ("blouse", "top"),
    "long": ("long", "long wavy", "long flowing"),
    "short": ("short", "cropped", "short neat"),
    "bald": ("a bald head", "bald", "no hair"),
    "hair": ("{x} hair", "with {x} hair", "{x}-haired"),
    "wear": ("wearing a {x}", "in a {x}", "dressed in a {x}", "{x}"),
    "woman": ("woman", "lady", "girl", "young woman", "female speaker"),
    "man": ("man", "guy", "boy", "gentleman", "young man", "male speaker"),
}
ENGLISH_HAIR_COLOURS = {"blond": "blonde", "grey": "gray", "red": "ginger", "auburn": "reddish brown"}
CHINESE_FACTS: dict[str, tuple[str, ...]] = {
    "gradient": ("纯色背景", "简单的背景", "背景干净"),
    "bokeh": ("虚化的灯光背景", "背景有光斑", "身后是模糊的灯光"),
    "window": ("在窗边", "在明亮的房间里", "坐在窗前"),
    "shelves": ("在图书馆", "书架前", "身后有很多书"),
    "landscape": ("在户外,远处是青山", "在乡村", "背景是草地和山"),
    "studio": ("在摄影棚里", "影棚背景", "在演播室"),
    "sunset": ("夕阳下", "黄昏的城市", "背景是日落"),
    "beanie": ("戴毛线帽", "戴着针织帽", "戴着帽子"),
    "headscarf": ("包着头巾", "戴着头巾", "围着头巾"),
    "glasses": ("戴眼镜", "戴着眼镜", "佩戴眼镜"),
    "full": ("满脸胡子", "大胡子", "留着络腮胡"),
    "moustache": ("留着小胡子", "八字胡"),
    "goatee": ("留着山羊胡", "下巴有胡子"),
    "t-shirt": ("T恤", "短袖"),
    "v-neck": ("V领毛衣", "V领衫"),
    "shirt": ("衬衫", "衬衣"),
    "turtleneck": ("高领毛衣", "高领衫"),
    "jacket": ("外套", "夹克", "西装"),
    "blouse": ("上衣", "女式衬衫"),
    "long": ("长发", "长头发"),
    "short": ("短发", "短头发"),
    "bald": ("光头", "没有头发"),
    "hair": ("{x}", "留着{x}", "一头{x}"),
    "wear": ("穿着{x}", "身穿{x}", "{x}"),
    "woman": ("女人", "女士", "女孩", "美女", "女生", "年轻女性"),
    "man": ("男人", "男士", "男孩", "帅哥", "男生", "年轻男性"),
}
CHINESE_COLOURS = {
    "black": "黑", "brown": "棕", "blond": "金", "auburn": "红褐", "red": "红", "grey": "灰", "white": "白",
    "blue": "蓝", "pink": "粉", "green": "绿", "purple": "紫", "beige": "米", "orange": "橙", "yellow": "黄",
    "teal": "青",
}  # fmt: skip
ENGLISH_FILLERS = _list(
    "cinematic lighting; 4k; cinematic lighting, 4k; high quality; best quality; speaking to the camera; singing; "
    "talking to the viewer; {she} is singing; singing a song; giving a speech; reading the news; telling a story; "
    "photorealistic; illustration style; soft light; ultra detailed; portrait; close-up portrait; medium shot; "
    "upper body; recording a podcast; explaining something; natural lighting; accurate lip sync; anime style; "
    "masterpiece; sharp focus; shallow depth of field; looking at the viewer; film grain; high resolution; "
    "a video of a person; looking into the camera; speaking clearly; in an interview; 8k, hdr; "
    "vivid colors"
)
CHINESE_FILLERS = _list(
    "电影级光影; 高清; 画质清晰; 4k; 写实风格; 对着镜头说话; 正在唱歌; 正在演讲; 讲故事; 面对观众; 柔和的光线; "
    "半身像; 特写; 人像; 插画风格; 细节丰富; 播报新闻; 接受采访; 声音清晰; 口型同步; 最佳质量; 浅景深; 自然光; "
    "录制播客; 正在讲课; 看着镜头; 视频; 杰作; 色彩鲜艳"
)
ENGLISH_IDLE = _list(
    "about the economy; about the weather; of history; about science; to an audience; for a documentary; "
    "about a book; to a friend; in the kitchen; at the office; about football; about technology; "
    "with a microphone; in the morning; about cooking; on a train; about politics; of a famous painter; "
    "in a school; about music; with earrings; on stage; from the north; with blue eyes; about money; "
    "for a company; to the children; about travel; about the future; in front of a car; next to a dog; "
    "with freckles; at a conference; in winter; on a chair; near the sea; wearing a necklace; with red lipstick; "
    "after lunch; about health; over the phone; a student; a doctor; a teacher; an old; a young; a child; "
    "from Japan; in detail; every word; her story; his work; a long speech; the city; a song"
)
CHINESE_IDLE = _list(
    "谈论经济; 关于天气; 讲历史; 科学; 观众; 纪录片; 一本书; 朋友; 在厨房; 在办公室; 足球; 技术; 拿着麦克风; 早上; "
    "做饭; 火车上; 政治; 画家; 学校; 音乐; 戴耳环; 舞台上; 蓝眼睛; 公司; 孩子们; 旅行; 未来; 汽车; 小狗; 雀斑; "
    "会议; 冬天; 椅子; 海边; 项链; 口红; 健康; 打电话; 学生; 医生; 老师; 老人; 小孩; 日本; 故事; 工作; 城市; "
    "一首歌; 电影感; 古代; 中国风"
)


def all_entries() -> list[str]:
    """Every wording and filler once, for a tokenizer to learn its vocabulary from."""
    tables = [entries for language in (ENGLISH, CHINESE) for field in language.values() for entries in field.values()]
    texts = [text for entries in tables for kind in entries.kinds() for text in kind]
    facts = [text for table in (ENGLISH_FACTS, CHINESE_FACTS) for texts in table.values() for text in texts]
    texts += [*facts, *ENGLISH_FILLERS, *CHINESE_FILLERS, *ENGLISH_IDLE, *CHINESE_IDLE]
    texts += [form for text in _all_verbs() for form in (third_person(text), gerund(text))]
    return [text.format(her="her", she="she", x="") for text in texts]


def _all_verbs() -> list[str]:
    return [verb for field in ENGLISH.values() for entries in field.values() for verb in entries.verbs]


def third_person(verb: str) -> str:
    """ "look left" → "looks left"."""
    first, _, rest = verb.partition(" ")
    if first.endswith("y") and first[-2] not in "aeiou":
        first = first[:-1] + "ies"
    else:
        first += "es" if first.endswith(("sh", "ch", "s", "x", "go")) else "s"
    return f"{first} {rest}".strip()


def gerund(verb: str) -> str:
    """ "move closer" → "moving closer"."""
    first, _, rest = verb.partition(" ")
    if first in _DOUBLED:
        first += first[-1]
    elif first.endswith("e") and not first.endswith("ee"):
        first = first[:-1]
    return f"{first}ing {rest}".strip()
