"""What to cite: the works that assay's methods come from, and which of them a run has used.

``ENTRIES`` has every work that the code names; ``used_by`` reads a run's config alone. The keys are the first author's
surname and the year, as in the code's own "[Gu et al. 2024]".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assay.config import Experiment, SourceConfig
from assay.config_file import from_dict
from assay.errors import unknown_name
from assay.models.bases import BASES
from assay.report.files import read_manifest

_LATEX = {"á": r"{\'a}", "é": r"{\'e}", "É": r"{\'E}", "ü": r"{\"u}", "ć": r"{\'c}", "–": "--", "—": "---", "&": r"\&"}


@dataclass(frozen=True)
class Entry:
    """A work as BibTeX has it; braces in ``title`` keep capitals. ``where`` holds the other fields."""

    key: str
    kind: str
    authors: str
    title: str
    used_for: str
    where: dict[str, str]

    @property
    def bibtex(self) -> str:
        """The BibTeX entry, in ASCII."""
        fields = {"author": self.authors, "title": self.title, **self.where}
        lines = [f"  {name} = {{{_in_latex(value)}}}," for name, value in fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])

    @property
    def reference(self) -> str:
        """One line for people: authors, title, where, year."""
        names = [name.split(", ")[0].strip("{}") for name in self.authors.split(" and ")]
        shown = [name for name in names if name != "others"][:3]
        who = ", ".join(shown) + (" et al." if len(names) > len(shown) else "")
        places = ("journal", "booktitle", "publisher", "eprint")
        place = next((self.where[name] for name in places if name in self.where), "")
        place = f"arXiv {place}" if place == self.where.get("eprint") else place
        title = self.title.replace("{", "").replace("}", "")
        return f"{who}: {title}. {place}{', ' if place else ''}{self.where.get('year', '')}".rstrip(", ")


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _entry(key: str, used_for: str, kind: str, authors: str, title: str, year: int, **where: str) -> Entry:
    if "eprint" in where:
        where["archiveprefix"] = "arXiv"
    return Entry(key, kind, authors, title, used_for, {"year": str(year), **where})


_PHENOMENON = (
    _entry(
        "tiapkin2025",
        "teacher hacking, golden and proxy, the three data sources",
        "inproceedings",
        "Tiapkin, Daniil and Calandriello, Daniele and Ferret, Johan and Perrin, Sarah and Vieillard, Nino and Ramé, "
        "Alexandre and Blondel, Mathieu",
        "On Teacher Hacking in Language Model Distillation",
        2025,
        booktitle="International Conference on Machine Learning (ICML)",
        eprint="2502.02671",
    ),
)
_DIVERGENCES = (
    _entry("kullback1951", "forward KL", "article", "Kullback, Solomon and Leibler, Richard A.",
           "On Information and Sufficiency", 1951,
           journal="The Annals of Mathematical Statistics", volume="22", number="1", pages="79–86"),
    _entry("hinton2015", "distillation by the teacher's law; softmax temperature", "misc",
           "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
           "Distilling the Knowledge in a Neural Network", 2015, eprint="1503.02531"),
    _entry("gu2024", "reverse KL", "inproceedings", "Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie",
           "{MiniLLM}: Knowledge Distillation of Large Language Models", 2024,
           booktitle="International Conference on Learning Representations (ICLR)", eprint="2306.08543"),
    _entry("jeffreys1946", "the Jeffreys divergence", "article", "Jeffreys, Harold",
           "An Invariant Form for the Prior Probability in Estimation Problems", 1946,
           journal="Proceedings of the Royal Society of London. Series A", volume="186", number="1007",
           pages="453–461"),
    _entry("wen2023", "total variation per token", "inproceedings",
           "Wen, Yuqiao and Li, Zichao and Du, Wenyu and Mou, Lili",
           "f-Divergence Minimization for Sequence-Level Knowledge Distillation", 2023,
           booktitle="Annual Meeting of the Association for Computational Linguistics (ACL)", eprint="2307.15190"),
    _entry("lee2001", "skewed KL", "inproceedings", "Lee, Lillian",
           "On the Effectiveness of the Skew Divergence for Statistical Language Analysis", 2001,
           booktitle="International Workshop on Artificial Intelligence and Statistics (AISTATS)"),
    _entry("ko2024", "skewed KL in distillation", "inproceedings",
           "Ko, Jongwoo and Kim, Sungnyun and Chen, Tianyi and Yun, Se-Young",
           "{DistiLLM}: Towards Streamlined Distillation for Large Language Models", 2024,
           booktitle="International Conference on Machine Learning (ICML)", eprint="2402.03898"),
    _entry("lin1991", "the Jensen–Shannon divergence", "article", "Lin, Jianhua",
           "Divergence Measures Based on the {Shannon} Entropy", 1991,
           journal="IEEE Transactions on Information Theory", volume="37", number="1", pages="145–151"),
    _entry("agarwal2024", "generalised JSD; responses of the student itself", "inproceedings",
           "Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr and Ramos, Sabela and Geist, "
           "Matthieu and Bachem, Olivier",
           "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", 2024,
           booktitle="International Conference on Learning Representations (ICLR)", eprint="2306.13649"),
    _entry("csiszar1967", "lower bounds from lists of likely tokens", "article", "Csiszár, Imre",
           "Information-Type Measures of Difference of Probability Distributions and Indirect Observations", 1967,
           journal="Studia Scientiarum Mathematicarum Hungarica", volume="2", pages="299–318"),
    _entry("kim2016", "hard labels: the teacher's text alone", "inproceedings", "Kim, Yoon and Rush, Alexander M.",
           "Sequence-Level Knowledge Distillation", 2016,
           booktitle="Conference on Empirical Methods in Natural Language Processing (EMNLP)", eprint="1606.07947"),
)  # fmt: skip
_MEASURES = (
    _entry("amini2025", "the Rao-Blackwellised estimator of KL over responses", "misc",
           "Amini, Afra and Vieira, Tim and Cotterell, Ryan",
           "Better Estimation of the {KL} Divergence Between Language Models", 2025, eprint="2504.10637"),
    _entry("li2016", "distinct n-grams", "inproceedings",
           "Li, Jiwei and Galley, Michel and Brockett, Chris and Gao, Jianfeng and Dolan, Bill",
           "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016,
           booktitle="North American Chapter of the Association for Computational Linguistics (NAACL)",
           eprint="1510.03055"),
    _entry("friedman2023", "the Vendi score of prompts", "article", "Friedman, Dan and Dieng, Adji Bousso",
           "The {Vendi} Score: A Diversity Evaluation Metric for Machine Learning", 2023,
           journal="Transactions on Machine Learning Research", eprint="2210.02410"),
    _entry("salmon2011", "counter-based random numbers", "inproceedings",
           "Salmon, John K. and Moraes, Mark A. and Dror, Ron O. and Shaw, David E.",
           "Parallel Random Numbers: As Easy as 1, 2, 3", 2011,
           booktitle="International Conference for High Performance Computing, Networking, Storage and Analysis (SC)"),
)  # fmt: skip
_STATISTICS = (
    _entry("efron1979", "the bootstrap over prompts", "article", "Efron, Bradley",
           "Bootstrap Methods: Another Look at the Jackknife", 1979,
           journal="The Annals of Statistics", volume="7", number="1", pages="1–26"),
    _entry("efron1993", "percentile intervals", "book", "Efron, Bradley and Tibshirani, Robert J.",
           "An Introduction to the Bootstrap", 1993, publisher="Chapman & Hall"),
    _entry("student1908", "t intervals and t tests", "article", "{Student}", "The Probable Error of a Mean", 1908,
           journal="Biometrika", volume="6", number="1", pages="1–25"),
    _entry("huber1964", "the robust fit of the law", "article", "Huber, Peter J.",
           "Robust Estimation of a Location Parameter", 1964,
           journal="The Annals of Mathematical Statistics", volume="35", number="1", pages="73–101"),
    _entry("kendall1954", "the correction of autocorrelation in the test of departure", "article", "Kendall, M. G.",
           "Note on Bias in the Estimation of Autocorrelation", 1954,
           journal="Biometrika", volume="41", number="3–4", pages="403–404"),
    _entry("vovk2021", "the test of departure: e-values from p-values", "article", "Vovk, Vladimir and Wang, Ruodu",
           "E-Values: Calibration, Combination and Applications", 2021,
           journal="The Annals of Statistics", volume="49", number="3", pages="1736–1754"),
    _entry("ville1939", "the test of departure: its bound under repeated looks", "book", "Ville, Jean",
           "Étude critique de la notion de collectif", 1939, publisher="Gauthier-Villars"),
    _entry("ramdas2023", "the test of departure: safe under repeated looks", "article",
           "Ramdas, Aaditya and Grünwald, Peter and Vovk, Vladimir and Shafer, Glenn",
           "Game-Theoretic Statistics and Safe Anytime-Valid Inference", 2023,
           journal="Statistical Science", volume="38", number="4", pages="576–601"),
    _entry("holm1979", "`assay compare`: p-values of several arms", "article", "Holm, Sture",
           "A Simple Sequentially Rejective Multiple Test Procedure", 1979,
           journal="Scandinavian Journal of Statistics", volume="6", number="2", pages="65–70"),
    _entry("conover1999", "the sign test over seeds", "book", "Conover, W. J.",
           "Practical Nonparametric Statistics", 1999, publisher="Wiley", edition="3"),
)  # fmt: skip
_TRAINING = (
    _entry("loshchilov2019", "AdamW", "inproceedings", "Loshchilov, Ilya and Hutter, Frank",
           "Decoupled Weight Decay Regularization", 2019,
           booktitle="International Conference on Learning Representations (ICLR)", eprint="1711.05101"),
    _entry("hu2022", "low-rank updates", "inproceedings",
           "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean "
           "and Wang, Lu and Chen, Weizhu",
           "{LoRA}: Low-Rank Adaptation of Large Language Models", 2022,
           booktitle="International Conference on Learning Representations (ICLR)", eprint="2106.09685"),
    _entry("chen2016", "gradient checkpointing", "misc",
           "Chen, Tianqi and Xu, Bing and Zhang, Chiyuan and Guestrin, Carlos",
           "Training Deep Nets with Sublinear Memory Cost", 2016, eprint="1604.06174"),
    _entry("hsu2024", "the loss in chunks, with its gradients going forward", "misc", "Hsu, Pin-Lun and others",
           "Liger Kernel: Efficient {Triton} Kernels for {LLM} Training", 2024, eprint="2410.10989"),
    _entry("wortsman2022", "`mean_of_students`: averaged weights", "inproceedings", "Wortsman, Mitchell and others",
           "Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy without Increasing "
           "Inference Time", 2022,
           booktitle="International Conference on Machine Learning (ICML)", eprint="2203.05482"),
    _entry("kaplan2020", "the forecast: operations per token", "misc", "Kaplan, Jared and others",
           "Scaling Laws for Neural Language Models", 2020, eprint="2001.08361"),
    _entry("korthikanti2022", "the forecast: memory of activations", "misc", "Korthikanti, Vijay and others",
           "Reducing Activation Recomputation in Large Transformer Models", 2022, eprint="2205.05198"),
)  # fmt: skip
_PROMPTS = (
    _entry("gonzalez1985", "choice of prompts: k-centre", "article", "Gonzalez, Teofilo F.",
           "Clustering to Minimize the Maximum Intercluster Distance", 1985,
           journal="Theoretical Computer Science", volume="38", pages="293–306"),
    _entry("nemhauser1978", "choice of prompts: facility location", "article",
           "Nemhauser, George L. and Wolsey, Laurence A. and Fisher, Marshall L.",
           "An Analysis of Approximations for Maximizing Submodular Set Functions—{I}", 1978,
           journal="Mathematical Programming", volume="14", pages="265–294"),
    _entry("minoux1978", "choice of prompts: lazy gains", "incollection", "Minoux, Michel",
           "Accelerated Greedy Algorithms for Maximizing Submodular Set Functions", 1978,
           booktitle="Optimization Techniques", publisher="Springer", pages="234–243"),
    _entry("chaudhuri2006", "near-duplicates across splits", "inproceedings",
           "Chaudhuri, Surajit and Ganti, Venkatesh and Kaushik, Raghav",
           "A Primitive Operator for Similarity Joins in Data Cleaning", 2006,
           booktitle="International Conference on Data Engineering (ICDE)"),
    _entry("bayardo2007", "near-duplicates across splits", "inproceedings",
           "Bayardo, Roberto J. and Ma, Yiming and Srikant, Ramakrishnan",
           "Scaling Up All Pairs Similarity Search", 2007,
           booktitle="International Conference on World Wide Web (WWW)"),
)  # fmt: skip
_TEXTS_AND_MODELS = (
    _entry("miller1995", "the task `define`: WordNet", "article", "Miller, George A.",
           "{WordNet}: A Lexical Database for {English}", 1995,
           journal="Communications of the ACM", volume="38", number="11", pages="39–41"),
    _entry("narayan2018", "the task `xsum`", "inproceedings", "Narayan, Shashi and Cohen, Shay B. and Lapata, Mirella",
           "Don't Give Me the Details, Just the Summary! {Topic}-Aware Convolutional Neural Networks for Extreme "
           "Summarization", 2018,
           booktitle="Conference on Empirical Methods in Natural Language Processing (EMNLP)", eprint="1808.08745"),
    _entry("bojar2014", "the task `wmt14-de-en`", "inproceedings", "Bojar, Ondrej and others",
           "Findings of the 2014 Workshop on Statistical Machine Translation", 2014,
           booktitle="Workshop on Statistical Machine Translation (WMT)"),
    _entry("wang2022", "the task `natural-instructions`", "inproceedings", "Wang, Yizhong and others",
           "Super-{NaturalInstructions}: Generalization via Declarative Instructions on 1600+ {NLP} Tasks", 2022,
           booktitle="Conference on Empirical Methods in Natural Language Processing (EMNLP)", eprint="2204.07705"),
    _entry("radford2019", "decoder-only bases: GPT-2's architecture", "misc",
           "Radford, Alec and Wu, Jeffrey and Child, Rewon and Luan, David and Amodei, Dario and Sutskever, Ilya",
           "Language Models are Unsupervised Multitask Learners", 2019, note="OpenAI technical report"),
    _entry("liu2020", "encoder-decoder bases: mBART's architecture", "article", "Liu, Yinhan and others",
           "Multilingual Denoising Pre-training for Neural Machine Translation", 2020,
           journal="Transactions of the Association for Computational Linguistics", volume="8", pages="726–742"),
    _entry("raffel2020", "T5 models of the hub", "article", "Raffel, Colin and others",
           "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
           journal="Journal of Machine Learning Research", volume="21", number="140", pages="1–67"),
    _entry("tay2022", "`google/t5-efficient` models of the hub", "inproceedings", "Tay, Yi and others",
           "Scale Efficiently: Insights from Pretraining and Finetuning Transformers", 2022,
           booktitle="International Conference on Learning Representations (ICLR)", eprint="2109.10686"),
)  # fmt: skip

ENTRIES: dict[str, Entry] = {
    entry.key: entry
    for group in (_PHENOMENON, _DIVERGENCES, _MEASURES, _STATISTICS, _TRAINING, _PROMPTS, _TEXTS_AND_MODELS)
    for entry in group
}
"""Key → work."""

OF_DIVERGENCE: dict[str, tuple[str, ...]] = {
    "forward_kl": ("kullback1951", "hinton2015"),
    "reverse_kl": ("gu2024",),
    "jeffreys": ("jeffreys1946",),
    "total_variation": ("wen2023",),
    "skew_forward_kl": ("lee2001", "ko2024"),
    "skew_reverse_kl": ("lee2001", "ko2024"),
    "generalised_jsd": ("lin1991", "agarwal2024"),
    "hard_labels": ("kim2016",),
}
_OF_SELECTION = {"k_centre": ("gonzalez1985",), "facility_location": ("nemhauser1978", "minoux1978")}
_OF_TASK = {
    "define": "miller1995",
    "xsum": "narayan2018",
    "wmt14-de-en": "bojar2014",
    "natural-instructions": "wang2022",
}
_OWN_TEXT = (".jsonl", ".parquet")
_OF_HUB = {  # the longest name that fits counts
    "openai-community/gpt2": "radford2019",
    "google-t5/": "raffel2020",
    "google/t5-efficient": "tay2022",
}
_OF_EVERY_RUN = ("tiapkin2025", "efron1979", "efron1993", "li2016", "friedman2023", "salmon2011", "loshchilov2019",
                 "huber1964", "kendall1954", "vovk2021", "ville1939", "ramdas2023")  # fmt: skip


def cite(run: Path) -> tuple[str, list[str]]:
    """BibTeX of assay and of every method that a run used, from its manifest.json; and the models that are not in it.

    Raises AssayError where the manifest cannot be read, or is of a version with fields that this one does not know.
    """
    manifest = read_manifest(run / "manifest.json")
    experiment = from_dict(manifest["config"])
    entries = [own_entry(manifest["assay_version"]), *(ENTRIES[key] for key in used_by(experiment))]
    return "\n\n".join(entry.bibtex for entry in entries), unknown_models(experiment)


def own_entry(version: str) -> Entry:
    """assay itself, as CITATION.cff has it."""
    title = "assay: how much gold is left in a distilled language model"
    return Entry("assay", "misc", "{The assay authors}", title, "all of it", {"version": version})


def used_by(experiment: Experiment) -> list[str]:
    """Keys of the works whose methods a run with this config uses, in the order of ``ENTRIES``."""
    used = {*_OF_EVERY_RUN, *_of_training(experiment), *_of_data(experiment)}
    used.update(key for name in experiment.models.names.values() if (key := _of_model(name)))
    if experiment.models.teacher is not None:
        used.add("amini2025")  # a teacher that gives text alone has no KL to estimate
    if len(experiment.arms) > 1:
        used.add("student1908")
    return [key for key in ENTRIES if key in used]


def unknown_models(experiment: Experiment) -> list[str]:
    """Names of models whose makers a run should cite too: checkpoints of your own, hub ids, servers."""
    return sorted({name for name in experiment.models.names.values() if _of_model(name) is None})


def _of_training(experiment: Experiment) -> Iterator[str]:
    training = experiment.distillation.training
    sources = [source for arm in experiment.arms for source in arm.sources]
    if experiment.models.teacher is not None and any(source.learn == "teacher" for source in sources):
        if training.divergence not in OF_DIVERGENCE:
            raise unknown_name("divergence", training.divergence, OF_DIVERGENCE)
        yield from OF_DIVERGENCE[training.divergence]
    if experiment.models.teacher is None or training.hard_label_weight or any(map(_learns_text, sources)):
        yield "kim2016"
    if any(source.writer == "student" for source in sources):
        yield "agarwal2024"
    if training.softmax_temperature != 1:
        yield "hinton2015"
    if experiment.distillation.teacher_top_k is not None or experiment.models.teacher_url is not None:
        yield "csiszar1967"
    if training.lora_rank is not None:
        yield "hu2022"
    if training.gradient_checkpointing:
        yield "chen2016"


def _learns_text(source: SourceConfig) -> bool:
    """Whether the teacher's text is learned; text of people or of the oracle is no distillation."""
    return source.learn == "text" and source.writer == "teacher"


def _of_data(experiment: Experiment) -> Iterator[str]:
    yield from _OF_SELECTION.get(experiment.distillation.selection, ())
    task = experiment.task.name
    if task in _OF_TASK:
        yield _OF_TASK[task]
    if task.endswith(_OWN_TEXT) or task.startswith("dataset:"):
        yield from ("chaudhuri2006", "bayardo2007")


def _of_model(name: str) -> str | None:
    if name in BASES:
        return {"causal": "radford2019", "seq2seq": "liu2020"}[BASES[name].family]
    return next((key for prefix, key in _OF_HUB.items() if name.startswith(prefix)), None)
