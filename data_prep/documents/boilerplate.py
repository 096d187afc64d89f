"""Takes boilerplate lines out of web pages and e-books before the quality rules see a document.

A line goes only when all of it is such a phrase, or when it is short and begins as such lines do; so a sentence *about*
cookies stays. English, German, French and Chinese. The frame that Project Gutenberg puts around its books goes too.
"""

from __future__ import annotations

import re
from collections import Counter

from configs.schema.data import Lines

# reason -> whole lines, in lower case, without the signs of `_FRAME` around them
PHRASES: dict[str, tuple[str, ...]] = {
    "teaser": (
        "read more", "read more here", "continue reading", "read the full article", "read full article", "see more",
        "read the rest of this entry", "click here to read more", "learn more", "show more", "load more",
        "view more", "find out more", "view all", "see all", "show all comments", "view comments", "more info",
        "weiterlesen", "mehr lesen", "mehr erfahren", "mehr anzeigen", "alle anzeigen", "weitere informationen",
        "zum artikel", "artikel lesen", "hier klicken", "lire la suite", "lire plus", "en savoir plus", "voir plus",
        "voir tout", "lire l'article", "cliquez ici", "plus d'infos", "阅读更多", "阅读全文", "查看更多", "查看全部",
        "点击查看更多", "更多内容", "点击阅读全文", "展开全文", "了解更多", "加载更多", "更多精彩内容", "点击这里",
        "查看详情",
    ),
    "sharing": (
        "share this", "share this post", "share this article", "share this page", "share this story", "share it",
        "share on facebook", "share on twitter", "share on linkedin", "share on whatsapp", "share on pinterest",
        "share via email", "tweet this", "pin it", "follow us on facebook", "follow us on twitter",
        "follow us on instagram", "like us on facebook", "email this", "email this to a friend", "blogthis",
        "copy link", "link copied", "share on x", "facebook twitter", "facebook twitter linkedin",
        "auf facebook teilen", "auf twitter teilen", "artikel teilen", "beitrag teilen", "seite teilen",
        "folgen sie uns", "diesen artikel teilen", "partager sur facebook", "partager sur twitter",
        "partager cet article", "suivez-nous", "partager cette page", "分享到", "分享到微信", "分享到微博",
        "一键分享", "分享本文", "关注我们", "扫一扫分享", "分享到朋友圈", "微信扫一扫", "扫描二维码", "分享到qq空间",
        "扫码关注",
    ),
    "navigation": (
        "skip to content", "skip to main content", "skip to navigation", "skip navigation", "jump to navigation",
        "jump to content", "jump to search", "toggle navigation", "main menu", "back to top", "go to top",
        "return to top", "scroll to top", "top of page", "previous post", "next post", "previous article",
        "next article", "older posts", "newer posts", "previous page", "next page", "leave a comment",
        "leave a reply", "post a comment", "add a comment", "log in to reply", "log in to comment",
        "you must be logged in to post a comment", "sign in", "log in", "sign up", "log out", "my account",
        "add to cart", "view cart", "print this page", "printer-friendly version", "search this site",
        "privacy policy", "cookie policy", "terms of use", "terms of service", "terms and conditions", "site map",
        "sitemap", "contact us", "about us", "related posts", "related articles", "you may also like",
        "recent posts", "recent comments", "you might also like", "sponsored content", "report this ad",
        "close menu", "open menu", "zum inhalt springen", "zum hauptinhalt springen", "direkt zum inhalt",
        "zur navigation springen", "nach oben", "zurück nach oben", "zurück zur übersicht", "zur startseite",
        "seite drucken", "artikel drucken", "hauptmenü", "vorheriger beitrag", "nächster beitrag",
        "vorheriger artikel", "nächster artikel", "kommentar hinterlassen", "schreibe einen kommentar",
        "kommentar schreiben", "datenschutzerklärung", "impressum", "nutzungsbedingungen", "ähnliche artikel",
        "ähnliche beiträge", "das könnte sie auch interessieren", "in den warenkorb", "anmelden", "aller au contenu",
        "aller au contenu principal", "haut de page", "retour en haut", "retour à l'accueil", "article précédent",
        "article suivant", "laisser un commentaire", "mentions légales", "plan du site",
        "politique de confidentialité", "conditions d'utilisation", "imprimer cette page", "articles similaires",
        "se connecter", "nous contacter", "menu principal", "ajouter au panier", "conditions générales de vente",
        "返回顶部", "回到顶部", "返回首页", "返回列表", "上一篇", "下一篇", "上一页", "下一页", "网站首页",
        "网站地图", "联系我们", "关于我们", "相关文章", "相关阅读", "相关推荐", "猜你喜欢", "热门推荐", "热门文章",
        "推荐阅读", "最新文章", "发表评论", "我要评论", "隐私政策", "用户协议", "打印本页", "关闭窗口", "加入收藏",
        "设为首页", "友情链接", "登录注册", "立即登录", "立即注册", "加入购物车", "收藏本站", "跳转到主要内容",
    ),
    "scripts": (
        "javascript is disabled", "this site requires javascript", "your browser is out of date", "wird geladen",
        "chargement", "chargement en cours", "加载中", "正在加载",
    ),
    "rights": (
        "all rights reserved", "alle rechte vorbehalten", "tous droits réservés", "版权所有", "未经许可不得转载",
    ),
    "cookies": (
        "accept all cookies", "accept cookies", "accept all", "cookie settings", "manage cookies", "reject all",
        "cookie preferences", "alle cookies akzeptieren", "cookies akzeptieren", "cookie-einstellungen",
        "alle akzeptieren", "accepter les cookies", "tout accepter", "tout refuser", "gérer les cookies",
        "paramètres des cookies", "接受所有cookie", "cookie设置", "接受所有 cookie", "cookie 设置",
    ),
    "newsletter": (
        "subscribe now", "subscribe to our newsletter", "sign up for our newsletter", "newsletter abonnieren",
        "join our mailing list", "get our newsletter", "zum newsletter anmelden", "jetzt abonnieren", "s'abonner",
        "s'abonner à la newsletter", "inscrivez-vous à notre newsletter", "je m'abonne", "订阅", "订阅我们",
        "立即订阅", "邮件订阅",
    ),
}  # fmt: skip

# reason -> how longer lines begin, in lower case
BEGINNINGS: dict[str, tuple[str, ...]] = {
    "cookies": (
        r"this (?:web)?site (?:\w+ )?uses cookies", r"we use cookies\b", "we and our partners (?:store|use|process)",
        "our (?:web)?site uses cookies", r"by (?:continuing|using|browsing)\b.{0,60}\bcookies?\b",
        "cookies help us (?:to )?(?:deliver|provide|improve)",
        "diese (?:web)?seite (?:verwendet|nutzt|benutzt) cookies",
        "diese website (?:verwendet|nutzt|benutzt) cookies",
        "unsere (?:website|webseite) (?:verwendet|nutzt) cookies",
        r"wir (?:verwenden|nutzen|setzen) (?:\w+ ){0,2}cookies", "ce site (?:web )?utilise des cookies",
        "nous utilisons (?:des|les) cookies", "en poursuivant (?:votre|la) navigation", r"本网站使用\s?cookie",
        r"我们使用\s?cookie", "继续(?:使用|浏览)本(?:网)?站.{0,20}cookie",
    ),
    "scripts": (
        r"please (?:enable|turn on|activate) java\s?script",
        r"java\s?script (?:is|must be|needs to be|seems to be) (?:not )?\w+(?: in your (?:web )?browser)?\W*$",
        r"you (?:need|must|have) (?:to )?(?:enable|have) java\s?script", r"your browser does not support\b",
        r"you need to enable java\s?script", r"bitte aktivieren sie java\s?script", "javascript ist deaktiviert",
        r"veuillez activer java\s?script", r"请(?:启用|开启|打开)\s?java\s?script",
        "您的浏览器(?:不支持|版本过低|未启用)",
    ),
    "rights": (
        r"copyright (?:©|\(c\)|&copy;|(?:19|20)\d\d)", r"c\) ?(?:19|20)\d\d\b", r"© ?(?:copyright )?(?:19|20)\d\d",
        r"©(?: [\w.&-]+){1,4}[.,]? all rights reserved", r"all rights reserved\b", r"alle rechte vorbehalten\b",
        r"tous droits réservés\b", r"版权所有\W", "未经(?:授权|许可|书面).{0,12}(?:转载|使用|复制)", r"京icp备\d",
        r"[粤沪浙苏鲁川闽鄂湘津渝豫]icp备\d",
    ),
    "newsletter": (
        r"(?:subscribe|sign up) (?:to|for) our (?:\w+ ){0,2}(?:newsletter|mailing list|updates)\b",
        r"enter your e-?mail (?:address )?(?:to|below|and)\b", r"get the latest (?:\w+ ){1,4}(?:in|to) your inbox",
        r"abonnieren sie unseren (?:\w+ )?newsletter", r"melden sie sich (?:\w+ ){0,3}newsletter",
        "(?:inscrivez|abonnez)-vous à (?:notre|la) (?:newsletter|lettre)", "输入您?的?(?:邮箱|电子邮件)",
        "关注.{0,12}(?:公众号|微信号|官方微博)$", "扫(?:描|一扫|码).{0,12}(?:关注|二维码)",
    ),
    "sharing": (
        r"click to (?:share|email|print)\b.{0,40}\(opens in new window",
        r"share (?:this|on|via):? (?:\w++[ ,|]*+){0,4}?\b(?:facebook|twitter|x|e-?mail|linkedin|whatsapp|pinterest)\b",
        r"follow us on (?:facebook|twitter|x|instagram|linkedin|youtube|pinterest)\b",
        r"find us on (?:facebook|twitter|instagram|youtube)\b", r"folgen sie uns auf (?:\w++[ ,|&]*+){1,5}$",
        r"suivez-nous sur (?:\w++[ ,|&]*+){1,5}$", "分享到[:： ]",
    ),
    "navigation": (
        r"home(?: [>»›/|] |[>»›])\S", r"startseite(?: [>»›/|] |[>»›])\S", r"accueil(?: [>»›/|] |[>»›])\S",
        "首页 ?[>»›/|]", "you are here ?:", "sie (?:sind|befinden sich) hier ?:", "vous êtes ici ?:",
        "当前位置 ?[:：]", "您(?:现在|当前)?的?位置 ?[:：]", "posted (?:in|on|by) .{1,60}[|•·]", "filed under ?:",
        "tagged (?:with|as)? ?:", r"this entry was posted (?:in|on|by)\b", "(?:上一篇|下一篇|上一页|下一页) ?[:：]",
        "责任编辑 ?[:：]", "相关(?:阅读|文章|推荐|链接) ?[:：]", "notify me of (?:new|follow-up) ",
        "your email address will not be published", "required fields are marked", "privacy policy ?[|•·-] ?",
        "terms (?:of use|of service|and conditions) ?[|•·-] ?",
    ),
}  # fmt: skip
_LONGEST_PHRASE = 60
_LONGEST_LINE = 300
_FRAME = " \t*_>|•·●▪►▶»«›‹→←↑↓…—–-.:;!?()[]{}<\"'“”。！：、，【】（）+=~^"
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
_REASON_OF = {phrase: reason for reason, phrases in PHRASES.items() for phrase in phrases}


def _first_characters(pattern: str) -> set[str]:
    """The characters that a text matched by the pattern can begin with."""
    head = re.match(r"\(\?:([^()]*)\)|\[([^\]]*)\]|\\?(.)", pattern)
    assert head is not None
    return {alternative[0] for alternative in head[1].split("|")} if head[1] else set(head[2] or head[3])


def _compiled() -> dict[str, re.Pattern[str]]:
    """For every first character of a line one pattern, whose groups are named after the reasons."""
    found: dict[str, dict[str, list[str]]] = {}
    for reason, patterns in BEGINNINGS.items():
        for pattern in patterns:
            for character in _first_characters(pattern):
                found.setdefault(character, {}).setdefault(reason, []).append(pattern)
    return {
        character: re.compile("|".join(f"(?P<{reason}>{'|'.join(some)})" for reason, some in groups.items()))
        for character, groups in found.items()
    }


class LinePass:
    """Takes out the lines that `data.lines` names.

    Raises:
        ValueError: for a pattern that is not a regular expression.
    """

    def __init__(self, settings: Lines) -> None:
        self._boilerplate = settings.boilerplate
        self._beginnings = _compiled()
        self._own: list[re.Pattern[str]] = []
        for pattern in settings.patterns:
            try:
                self._own.append(re.compile(pattern))
            except re.error as error:
                raise ValueError(f"data.lines.patterns: {pattern!r} is not a regular expression: {error}") from error

    def __call__(self, text: str) -> tuple[str, dict[str, int]]:
        """The text left, and how many lines were taken out for which reason."""
        counts: Counter[str] = Counter()
        if self._boilerplate:
            text = _without_gutenberg(text, counts)
        reason_of = self._reason_of
        kept: list[str] = []
        taken = 0
        for line in text.split("\n"):
            reason = reason_of(line) if line else None
            if reason is None:
                # Where lines were taken out from between two empty ones, one of those is enough.
                if line or not taken or (kept and kept[-1]):
                    kept.append(line)
            else:
                counts[reason] += 1
                taken += 1
        return ("\n".join(kept).strip("\n") if taken else text), dict(counts)

    def _reason_of(self, line: str) -> str | None:
        if self._boilerplate and len(line) <= _LONGEST_LINE:
            bare = line.strip(_FRAME)
            if "](" in bare:
                bare = _LINK.sub(r"\1", line).strip(_FRAME)
            if bare:
                bare = bare.lower()
                if len(bare) <= _LONGEST_PHRASE and bare in _REASON_OF:
                    return _REASON_OF[bare]
                beginning = self._beginnings.get(bare[0])
                found = beginning.match(bare) if beginning else None
                if found:
                    return found.lastgroup
        return "pattern" if any(pattern.search(line) for pattern in self._own) else None


# ---------------------------------------------------------------------------------------------------- Project Gutenberg
_GUTENBERG = re.compile("project gutenberg", re.IGNORECASE)
# The markers since 2003, on one line or broken into two; before that the header ended with the small print.
_START = re.compile(
    r"^[ \t]*(?:\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n*]*(?:\n[^\n*]+)?\*\*\*|\*END[ *]*THE SMALL PRINT!)"
    r"[^\n]*$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^[ \t]*(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the |this )?Project Gutenberg(?:['’]s)? )",
    re.MULTILINE | re.IGNORECASE,
)
_CREDIT = re.compile(
    r"\s*(?:(?:Produced|E-?text prepared|This e-?text was (?:prepared|produced)|Transcribed|HTML version) [^\n]*"
    r"(?:\n[^\n]+){0,5}\n\s*\n)?",
    re.IGNORECASE,
)
_HEADER_CHARACTERS = 40_000


def _without_gutenberg(text: str, counts: Counter[str]) -> str:
    """The book without Project Gutenberg's header, credits and licence."""
    if not _GUTENBERG.search(text, 0, _HEADER_CHARACTERS) and not _GUTENBERG.search(
        text, len(text) - _HEADER_CHARACTERS
    ):
        return text
    starts = list(_START.finditer(text, 0, _HEADER_CHARACTERS))
    begin = starts[-1].end() if starts else 0
    if starts and (credit := _CREDIT.match(text, begin)):
        begin = credit.end()
    ending = _END.search(text, begin)
    end = ending.start() if ending else len(text)
    if not begin and ending is None:
        return text
    left = text[begin:end].strip("\n")
    counts["gutenberg"] += text.count("\n") - left.count("\n")
    return left
