"""The embedded model's tokenizer: small, for prompts about portraits, and never at a loss for a character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from wan_s2v.prompt import NEGATIVE_PROMPT, clean_prompt
from wan_s2v.training.wordings import all_entries

VOCAB_SIZE = 2304
_MAX_CHARACTERS = 900  # rarer ones are left to their bytes, lest they displace words
_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 as in UMT5
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# Pairs of a traditional character and its simplified form, for the words of direction.
_TRADITIONAL = (
    "鏡镜頭头點点搖摇緩缓漸渐遠远進进動动靜静開开憤愤驚惊訝讶傷伤難难過过氣气說说話话講讲著着視视轉转邊边側侧臉脸頓顿"
    "畫画攝摄機机後后來来場场樂乐興兴歡欢愛爱悅悦淚泪紅红藍蓝綠绿黃黄髮发鬍胡鬚须襯衬領领裝装燈灯雙双滿满歲岁輕轻擺摆"
    "穩稳縮缩變变對对齒齿張张嚇吓樣样從从個个這这請请嘆叹聲声現现實实無无為为與与圖图館馆書书"
)

# Further words of portrait prompts, so that they are encoded in few tokens.
_ENGLISH = """
a an the this that and or but with without of in on at to from for by as is are was be has have not no very his
her him he she they them their its it one two person people man woman girl boy child baby lady gentleman old
elderly young adult teenager middle-aged mother father grandmother grandfather teacher doctor news anchor singer
actor presenter speaker student soldier king queen princess robot cat dog asian african european chinese indian
face head eyes eye nose mouth lips teeth tongue ear ears cheek cheeks chin forehead neck shoulders hand hands
arm body skin hair brows eyebrows eyelashes freckles makeup lipstick beard moustache glasses sunglasses hat cap
beanie scarf headscarf earrings necklace tie bow dress suit shirt sweater hoodie jacket coat uniform blouse
striped plain dotted red green blue yellow black white grey brown orange purple pink beige teal gold silver dark
light bright pale deep long short curly straight wavy blond bald ponytail bun bangs braids afro bob fringe happy
sad angry calm surprised afraid scared worried nervous tired bored shy proud confident gentle kind funny serious
thoughtful curious disgusted confused loving crying laughing smiling talking speaking singing whispering
shouting screaming listening looking turning nodding shaking tilting moving blinking winking gesturing waving
standing sitting walking dancing slowly quickly gently suddenly slightly strongly softly freely naturally left
right up down forward backward side front behind around away closer camera shot close-up medium wide angle zoom
pan push pull in out dolly static still fixed handheld tracking tripod lens focus blur bokeh background
foreground scene room window wall office kitchen street city park forest beach sea mountain hills sky sunset
night day morning evening rain snow studio library books shelves lamp lights soft warm cold cinematic realistic
illustration cartoon anime painting portrait photo video film movie style quality high best detailed 4k 8k hd
resolution lighting shadow natural vivid colourful voice speech song music microphone interview podcast news
story lecture lip sync expression emotion mood smile frown grin tears
"""
_CHINESE = """
一位 一个 男人 女人 男孩 女孩 老人 孩子 年轻 中年 老师 医生 歌手 演员 主持人 学生 脸部 头部 眼睛 鼻子 嘴巴 嘴唇
牙齿 耳朵 脸颊 下巴 额头 脖子 肩膀 双手 身体 皮肤 头发 眉毛 胡子 眼镜 墨镜 帽子 头巾 耳环 项链 领带 裙子 西装
衬衫 毛衣 外套 红色 绿色 蓝色 黄色 黑色 白色 灰色 棕色 橙色 紫色 粉色 金色 银色 深色 浅色 明亮 长发 短发 卷发
直发 光头 马尾 刘海 开心 高兴 悲伤 难过 愤怒 生气 平静 惊讶 害怕 担心 紧张 疲惫 害羞 自信 温柔 严肃 好奇 哭泣
大笑 微笑 说话 讲话 唱歌 听着 看着 转头 点头 摇头 歪头 眨眼 挥手 站着 坐着 走路 慢慢 缓慢 快速 轻轻 突然 自然
左边 右边 向左 向右 向上 向下 前面 后面 旁边 镜头 推近 拉远 推进 平移 固定 静止 跟随 特写 中景 远景 背景 画面
房间 窗户 墙壁 办公室 街道 城市 公园 森林 海边 山丘 天空 夕阳 夜晚 早晨 下雨 下雪 书架 灯光 柔和 温暖 电影 写实
插画 动漫 油画 人像 照片 视频 风格 质量 高清 细节 光线 阴影 声音 音乐 采访 新闻 故事 表情 情绪
"""


def train_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte pair encoding of prompts in English and Chinese, in lower case; whatever else falls back to bytes.

    Latin words carry a mark at their start whatever stands before them, Chinese tokens none, so that a word is encoded
    alike anywhere. Needs no sentencepiece file: `save_pretrained` writes all of it to tokenizer.json.

    Args:
        prompts: typical ones, thousands; single words are added to them.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\p{Han}+|▁?(?:(?!\p{Han})[\p{L}\p{M}\p{N}])+|▁?[^\p{L}\p{M}\p{N}▁]"), "isolated"
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*_SPECIAL, *_BYTES],
        initial_alphabet=[*_LETTERS, "▁"],
        limit_alphabet=_MAX_CHARACTERS,
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(prompts), trainer)
    tokenizer = _with_plain_bytes(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _normalizer() -> normalizers.Normalizer:
    word, gap = r"[\p{L}\p{M}\p{N}]", r"\p{P}\p{S}\p{Han}"
    simplify = [normalizers.Replace(old, new) for old, new in zip(_TRADITIONAL[::2], _TRADITIONAL[1::2], strict=True)]
    starts = rf"(?<!{word})(?={word})|(?<=\p{{Han}})(?=(?!\p{{Han}}){word})"
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            *simplify,
            normalizers.Replace(Regex(starts), " "),
            normalizers.Replace(Regex(rf"\s+(?=[{gap}])|\s+$"), ""),
            normalizers.Replace(Regex(r"\s+"), "▁"),
        ]
    )


def _texts(prompts: Iterable[str]) -> Iterator[str]:
    for text in [*prompts, *(all_entries() + _ENGLISH.split() + _CHINESE.split()) * 3, NEGATIVE_PROMPT]:
        yield from (_cut_chinese(clean_prompt(text), first) for first in (1, 2))


def _cut_chinese(text: str, first: int) -> str:
    """Every run of Chinese characters in pairs after the `first` ones, lest whole clauses become one token."""

    def cut(run: re.Match[str]) -> str:
        characters = run.group()
        return ",".join([characters[:first], *(characters[i : i + 2] for i in range(first, len(characters), 2))])

    return re.sub(r"[\u4e00-\u9fff]+", cut, text)


def _with_plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with bytes as ordinary tokens, lest a text that spells a byte's name is taken for it."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][: len(_SPECIAL)]
    return Tokenizer.from_str(json.dumps(state))
