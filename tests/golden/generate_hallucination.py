"""Made-up answers to the hallucination benchmarks, and what they come to.

Run:  python tests/golden/generate_hallucination.py     (needs nltk and pattern; no network, none of their data)

Everything lands in tests/golden/hallucination/cases.json and is read by crates/eval/tests/hallucination/: `files` (name to text, JSON or the rows
of JSON lines), and what each benchmark makes of them. Singulars and tokens are those of pattern.en and of NLTK's word tokenizer. The scores are computed here anew from
the rules of the published programs; when this was written, those programs themselves gave the same numbers on the same files
(POPE evaluate.py and utils.py, CHAIR-metric-standalone, AMBER inference.py with stored nouns and vectors, HallusionBench utils.py, and the
Object HalBench and MMHal programs of RLAIF-V from their extracted objects and replies on).

Made with: Python 3.11.7, nltk 3.8.1, pattern 3.6
"""

import collections
import json
import pathlib
import random

from nltk.tokenize.destructive import NLTKWordTokenizer
from pattern.text.en.inflect import singularize

HERE = pathlib.Path(__file__).parent / "hallucination"
files, expected = {}, {}


def lines(rows):
    """Written as JSON lines by the tests, since the file's name says so."""
    return list(rows)


def ratio(part, whole):
    return part / whole if whole else None


# Words ---------------------------------------------------------------------------------------------------------------------------------

WORDS = """bus buses glass glasses skis scissors knives knife people women men children person geese sheep oxen oxens ties pies mice slices
police boxes churches dishes tomatoes shoes horses houses vases bases analyses analysis reanalyses theses quizzes matrices vertices indices aliases
statuses octopi taxi hibachi graffiti safari crises axes tests movies zombies series berries cities soliloquies wolves elves leaves loaves
thieves scarves curves lives wives halves gloves waves olives natives hives chefs caves moves news pews pizza pasta data umbrella banana
broccoli teddies puppies kitties doggies collies cookies birdies mothers-in-law passers-by t-shirts two-story x-rays dogs' boss's has is this was
its ears ice sand and our four hour colour luggage water bread fruits ketchup toothbrushes couches sandwiches donuts frisbees surfboards
skateboards tennis racket baseball gloves kites suitcases handbags giraffes zebras elephants cattle calves puppy beagle oldies lingerie synopses
roses poses doses glucose neuroses hypnoses beaux larvae arthritis bronchitis alumnae feet teeth louse lice apices benches peaches s es ies
a i potatoes heroes radios videos kangaroos pianos studios buoys keys trays quays chassis clothes trousers jeans shears clippers""".split()

SENTENCES = [
    "A man, a plan, a canal: Panama!",
    "There isn't a dog's bone; the dogs' bowls aren't there.",
    "The \"red\" car (parked) costs $3.50, or 1,000 cents...",
    "I can't say 'no' to cookies & cream -- it's 5:30.",
    "she's gonna wanna see the cat's toys, gimme more'n that",
    "'tis a two-story house w/ a tv/monitor.",
    "“Smart quotes” aren’t ‘rare’ … are they?",
    "He said ''hello'' to [them] {all} <now>.",
    "cannot d'ye lemme gotta wanna.",
    "No space.before the end",
    "A 50% off #sale @ home* for you!?",
    "the dog 's a good 'un and the 'x marks it",
    "ends with a quote \"here.\"",
    "tabs\tand\nnew lines, too.",
]
expected["singulars"] = {word: singularize(word) for word in WORDS}
expected["tokens"] = [[text, NLTKWordTokenizer().tokenize(text)] for text in SENTENCES]

# POPE ----------------------------------------------------------------------------------------------------------------------------------

ANSWERS = [
    "Yes", "No", "No, there is no cat.", "no.", "NO", "Yes. No cat.", "There isn't a dog", "There is not a dog.", "No\n", "I don't think so",
    "Yes, not really.", "no!", "Nope", "", ". No", "no,", ",No", "Yes,no", "It is not, no", "not.", "Yes there is", "NOT", "  no", "No.yes",
    "yes", "Yes, there is a cat in the image.", "No, there is not.",
]


def pope_no(text):
    head = text.partition(".")[0].replace(",", "")
    return not {"No", "not", "no"}.isdisjoint(head.split(" "))


def pope_scores(labels, answers):
    table = collections.Counter(zip(labels, ["no" if pope_no(answer) else "yes" for answer in answers]))
    tp, fp, tn, fn = table["yes", "yes"], table["no", "yes"], table["no", "no"], table["yes", "no"]
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    f1 = None if precision is None or recall is None else ratio(2 * precision * recall, precision + recall)
    count = tp + fp + tn + fn
    return {"accuracy": (tp + tn) / count, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": (tp + fp) / count}


draw = random.Random(1)
OBJECTS = ["person", "chair", "car", "dog", "apple", "orange", "umbrella", "cat", "bus", "kite"]
images = []
for number in range(18):
    popular = [name for name in OBJECTS if draw.random() < 0.75 / (1 + OBJECTS.index(name) / 4)]
    draw.shuffle(popular)
    images.append({"image": f"{number:03}.jpg", "objects": popular[:5]})
images.append({"image": "many.jpg", "objects": [name for name in OBJECTS if name not in ("kite", "bus", "cat", "orange")]})
files["pope_objects.jsonl"] = lines(images)


def pope_deterministic(setting, used):
    """Questions of a setting in which nothing is drawn; None stands for an object that would be."""
    met, beside = collections.Counter(), collections.defaultdict(collections.Counter)
    for image in used:
        met.update(image["objects"])
        for one in image["objects"]:
            beside[one].update(other for other in image["objects"] if other != one)
    rows = []
    for image in used:
        asked = set()
        for present in image["objects"][:3]:
            asked.add(present)
            ranked = [name for name, _ in (met if setting == "popular" else beside[present]).most_common()]
            absent = next((name for name in ranked if name not in asked and name not in image["objects"]), None)
            asked.add(absent)
            rows.append([image["image"], present, absent])
    return rows


enough = [image for image in images if len(image["objects"]) >= 3]
expected["pope_questions"] = {setting: pope_deterministic(setting, enough) for setting in ("popular", "adversarial")}

expected["pope"] = {}
for setting in ("random", "popular", "adversarial"):
    questions, answers = [], []
    for number in range(30):
        name = draw.choice(OBJECTS)
        questions.append({
            "question_id": number + 1, "image": f"{number // 6:03}.jpg", "text": f"Is there a {name} in the image?",
            "label": draw.choice(["yes", "no"]),
        })
        answers.append({"answer": draw.choice(ANSWERS)})
    files[f"pope_{setting}.jsonl"], files[f"pope_answers_{setting}.jsonl"] = lines(questions), lines(answers)
    scores = pope_scores([row["label"] for row in questions], [row["answer"] for row in answers])
    expected["pope"].update({f"{setting}/{name}": value for name, value in scores.items()})
for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
    expected["pope"][f"mean/{name}"] = sum(expected["pope"][f"{setting}/{name}"] for setting in ("random", "popular", "adversarial")) / 3
expected["pope_parse"] = [[text, "no" if pope_no(text) else "yes"] for text in ANSWERS]

# CHAIR ---------------------------------------------------------------------------------------------------------------------------------

# A list of our own in the layout of the published one, with its defects: a name with a space before it, one that comes twice.
files["synonyms.txt"] = """person, man, woman, child, adult, passenger, baby, people
bird, duck
bear, cub
train, jet train
airplane, jet, plane
motorcycle,  motor bike, motor cycle
bus, minibus
tie, bow, bow tie
wine glass
cup
hot dog
dog, puppy, hot pup
chair, seat, stool
toilet, commode, toilet
cake,  cheesecake
cell phone, mobile phone, phone
skis, ski
tennis racket, racket
knife, pocketknife, knive
oven, stove top oven, stove
sports ball, ball
plate
"""
CATEGORIES = ["person", "bird", "bear", "train", "airplane", "motorcycle", "bus", "tie", "wine glass", "cup", "hot dog", "dog", "chair", "toilet"]
PHRASES = [
    "two men on motor bikes", "a baby bird", "an adult elephant", "baby bears", "a passenger jet", "passenger trains", "the seat of the toilet",
    "a toilet seat", "a bow tie", "three wine glasses", "a wine glass", "hot dogs", "a puppy", "a bus", "two buses", "people", "a child's plate",
    "cheesecake", "a man's phone", "mobile phones", "skis", "tennis rackets", "knives", "a stove top oven", "sports balls", "home plate",
    "a jet", "ties", "ducks", "a chair", "stools", "a motor cycle", "nothing at all", "the dog.", "a \"cup\"", "bears' cubs",
]


def read_synonyms(text, strip):
    table = {}
    for line in text.strip("\n").split("\n"):
        names = line.strip().split(", ")
        names = [name.strip() for name in names] if strip else names
        table.update(dict.fromkeys(names, names[0]))
    return table


SYNONYMS = read_synonyms(files["synonyms.txt"], False)
PAIRS = {pair: pair for pair in (
    "motor bike|motor cycle|air plane|traffic light|street light|traffic signal|stop light|fire hydrant|stop sign|parking meter|suit case|"
    "sports ball|baseball bat|baseball glove|tennis racket|wine glass|hot dog|cell phone|mobile phone|teddy bear|hair drier|potted plant|"
    "laptop computer|stove top oven|home plate|train track").split("|")}
for animal in "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split():
    PAIRS[f"baby {animal}"] = PAIRS[f"adult {animal}"] = animal
PAIRS.update({"passenger jet": "jet", "passenger train": "train", "bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"})


def caption_objects(caption):
    """Words and places of the objects of a caption of sentences that end in '. '."""
    tokens = [token for part in caption.lower().replace(". ", ".\0").split("\0") for token in NLTKWordTokenizer().tokenize(part)]
    tokens = [singularize(token) for token in tokens]
    merged, starts, at = [], [], 0
    while at < len(tokens):
        pair = PAIRS.get(" ".join(tokens[at:at + 2]))
        merged.append(pair or tokens[at])
        starts.append(at)
        at += 2 if pair else 1
    if "toilet" in merged and "seat" in merged:
        merged = [word for word in merged if word != "seat"]
    found = [(word, SYNONYMS[word], start) for word, start in zip(merged, starts) if word in SYNONYMS]
    return found, merged


instances = {"images": [], "annotations": [], "categories": [{"id": 3 * i + 1, "name": name} for i, name in enumerate(CATEGORIES)]}
people_say, captions = {"annotations": []}, []
for image in range(19):
    instances["images"].append({"id": image, "file_name": f"{image}.jpg"})
    for _ in range(draw.randrange(5)):
        instances["annotations"].append({"image_id": image, "category_id": draw.choice(instances["categories"])["id"], "iscrowd": 0})
    for _ in range(2):
        people_say["annotations"].append({"image_id": image, "caption": f"{draw.choice(PHRASES)} beside {draw.choice(PHRASES)}".capitalize()})
    said = [draw.choice(PHRASES) for _ in range(draw.randrange(1, 5))]
    captions.append({"image_id": image, "caption": "The picture shows " + ", and ".join(said[:2]) + ". " + " ".join(said[2:]) + " are there."})
captions.append(dict(captions[3]))
files["instances.json"], files["captions.json"] = instances, people_say
files["chair_answers.jsonl"] = lines(captions)

there = collections.defaultdict(set)
names = {category["id"]: category["name"] for category in instances["categories"]}
for row in instances["annotations"]:
    there[row["image_id"]].add(SYNONYMS[names[row["category_id"]]])
for row in people_say["annotations"]:
    there[row["image_id"]].update(name for _, name, _ in caption_objects(row["caption"])[0])
sums, sentences = collections.Counter(), []
for row in captions:
    found, merged = caption_objects(row["caption"])
    truth = there[row["image_id"]]
    wrong = [entry for entry in found if entry[1] not in truth]
    sums.update(captions=1, bad=bool(wrong), wrong=len(wrong), mentions=len(found), truth=len(truth))
    sums["recalled"] += len({name for _, name, _ in found} & truth)
    sentences.append({
        "mscoco_hallucinated_words": [[word, name] for word, name, _ in wrong], "mscoco_gt_words": sorted(truth),
        "mscoco_generated_words": [name for _, name, _ in found], "hallucination_idxs": [start for _, _, start in wrong],
    })
expected["chair"] = {
    "chair_s": sums["bad"] / sums["captions"], "chair_i": sums["wrong"] / sums["mentions"], "recall": sums["recalled"] / sums["truth"],
}
expected["chair_sentences"] = sentences

# Object HalBench -----------------------------------------------------------------------------------------------------------------------

REFINED = read_synonyms(files["synonyms.txt"], True)
rows, sums = [], collections.Counter()
for image in range(19):
    objects = [draw.choice([*REFINED, "sky", "seat", "toilet"]) for _ in range(draw.randrange(6))]
    objects = list(dict.fromkeys(objects))
    rows.append({"image_id": image, "answer": " ".join(["word"] * draw.randrange(1, 9)), "objs": objects})
    kept = [name for name in objects if not (name == "seat" and "toilet" in objects)]
    named = [REFINED[name] for name in kept if name in REFINED]
    wrong = [name for name in named if name not in there[image]]
    sums.update(all=1, some=bool(named), bad=bool(wrong), wrong=len(wrong), named=len(named), truth=len(there[image]))
    sums.update(recalled=len(set(named) & there[image]), words=len(rows[-1]["answer"].split(" ")))
files["halbench_answers.jsonl"] = lines(rows)
files["halbench_truth.jsonl"] = lines({"image_id": image, "objects": sorted(there[image])} for image in range(19))
expected["object_halbench"] = {
    "response_hallucination": 100 * sums["bad"] / sums["some"], "object_hallucination": 100 * sums["wrong"] / sums["named"],
    "chair_s": 100 * sums["bad"] / sums["all"], "object_recall": 100 * sums["recalled"] / sums["truth"],
    "answers_with_objects": sums["some"], "mean_words": sums["words"] / sums["all"],
}

# AMBER ---------------------------------------------------------------------------------------------------------------------------------

relation = {
    "sky": [], "grass": ["ground"], "ground": ["floor"], "person": ["people", "man", "woman"], "forest": ["tree", "leave"],
    "tree": ["forest", "leave"], "sea": ["water", "lake"], "ship": ["boat"], "dog": [], "cloud": [], "bird": [], "sun": [], "lake": ["water"],
}
vocabulary = sorted({word for key, others in relation.items() for word in (key, *others)})
vectors = {word: [round(draw.gauss(0, 1), 3) for _ in range(6)] for word in vocabulary}
for word, near in (("boat", "sea"), ("sun", "sky"), ("people", "dog"), ("floor", "grass"), ("bird", "cloud")):
    vectors[word] = [round(value + draw.gauss(0, 0.2), 3) for value in vectors[near]]
vectors["leave"] = [0.0] * 6
files["relation.json"], files["safe_words.txt"] = relation, "light\nground\nshoe"
files["vectors.txt"] = "".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in vectors.items())


def similarity(one, other):
    if one == other:
        return 1.0
    product = lambda a, b: sum(x * y for x, y in zip(vectors[a], vectors[b]))
    norm = (product(one, one) * product(other, other)) ** 0.5
    return product(one, other) / norm if norm else 0.0


def first(word, annotated, test):
    """The annotated word whose entry comes first: those of associations first, then the words themselves."""
    entries = [(other, i) for i, name in enumerate(annotated) for other in relation[name]] + [(name, i) for i, name in enumerate(annotated)]
    return next((i for other, i in entries if test(word, other)), None)


def equal(one, other):
    return one == other


def near(one, other):
    return similarity(one, other) > 0.8


annotations, responses = [], []
sums = collections.Counter()
for number in range(1, 31):
    truth, hallu = draw.choices(list(relation), k=draw.randrange(1, 6)), draw.sample(list(relation), draw.randrange(0, 5))
    annotations.append({"id": number, "type": "generative", "truth": truth, "hallu": hallu})
    nouns = draw.choices([*vocabulary, "Sky", "shoe", "picture"], k=draw.randrange(0, 9))
    responses.append({"id": number, "response": " ".join(nouns), "nouns": nouns})
    bad, covered, targets = 0, set(), set()
    nouns = [noun for noun in nouns if noun in vocabulary]
    for noun in nouns:
        if noun in ("light", "ground", "shoe"):
            continue
        if (place := first(noun, truth, equal)) is not None:
            covered.add(place)
            continue
        targets |= {first(noun, hallu, equal), first(noun, hallu, near)} - {None}
        if (place := first(noun, truth, near)) is not None:
            covered.add(place)
        else:
            bad += 1
    sums.update(bad=bad, nouns=len(nouns), covered=len(covered), truth=len(truth), targets=len(targets), hallu=len(hallu), clean=not bad, all=1)
KINDS = ["discriminative-hallucination", "discriminative-attribute-state", "discriminative-attribute-number", "discriminative-attribute-action",
         "discriminative-relation", "relation"]
tables = collections.defaultdict(collections.Counter)
for number in range(31, 96):
    kind = draw.choice(KINDS)
    truth = "no" if kind in (KINDS[0], "relation") else draw.choice(["yes", "no"]) if "attribute" in kind else "yes"
    response = draw.choice(["Yes", "No", "No", "Yes", "yes", "No."])
    annotations.append({"id": number, "type": kind, "truth": truth})
    responses.append({"id": number, "response": response})
    tables[KINDS[4] if kind == "relation" else kind][truth, response] += 1
draw.shuffle(responses)
files["amber_annotations.json"], files["amber_answers.json"] = annotations, responses


def amber_table(kinds, added, starts=0.001):
    table = sum((tables[kind] for kind in kinds), collections.Counter())
    total = lambda test: sum(count for key, count in table.items() if test(*key))
    hit = total(lambda truth, said: truth == "no" and said == "No")
    right = hit + total(lambda truth, said: truth == "yes" and said == "Yes")
    percent = lambda part, whole: round(part / (whole + starts) * 100, 1)
    precision = percent(hit, total(lambda truth, said: said == "No"))
    recall = percent(hit, total(lambda truth, said: truth == "no"))
    p, r = precision / 100, recall / 100
    f1 = round(2 * p * r / (p + r + added) * 100, 1)
    return {"accuracy": percent(right, total(lambda truth, said: True)), "precision": precision, "recall": recall, "f1": f1}


percent = lambda part, whole: round(sums[part] / (sums[whole] + 0.001) * 100, 1)
amber = {
    "generative/chair": percent("bad", "nouns"), "generative/cover": percent("covered", "truth"),
    "generative/hal": round(100 - sums["clean"] / (sums["all"] + 0.001) * 100, 1), "generative/cog": percent("targets", "hallu"),
}
for name, kinds, added, starts in (
    ("discriminative", KINDS[:5], 1e-4, 0.001), ("existence", KINDS[:1], 1e-3, 0.001), ("attribute", KINDS[1:4], 1e-4, 0.003),
    ("state", KINDS[1:2], 1e-4, 0.001), ("number", KINDS[2:3], 1e-4, 0.001), ("action", KINDS[3:4], 1e-4, 0.001),
    ("relation", KINDS[4:5], 1e-4, 0.001),
):
    amber.update({f"{name}/{metric}": value for metric, value in amber_table(kinds, added, starts).items()})
amber["amber_score"] = (100 - amber["generative/chair"] + amber["discriminative/f1"]) / 2
expected["amber"] = amber

# MMHal -----------------------------------------------------------------------------------------------------------------------------------

TYPES = ["attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other"]
REPLIES = [
    ("- Rating: {}, informative", None), ("RATING: {}", None), ("Rating: {} and again rating: {}", None), ("Rating {}", 0), ("Rating: 7", 0),
    ("Rating: 10", 1), ("Rating: 3 or Rating: 4", 0), ("", 0), ("rating:{}", 0),
]
replies, ratings = [], []
for _ in range(96):
    (reply, rating), digit = draw.choice(REPLIES[:3] * 3 + REPLIES), draw.randrange(7)
    said = reply.replace("{}", str(digit))
    replies.append({"choices": [{"message": {"content": said}}]} if len(replies) % 4 == 0 else {"gpt4_review": said})
    ratings.append(digit if rating is None else rating)
files["mmhal_replies.json"] = replies
expected["mmhal"] = {
    "score": sum(ratings) / 96, "hallucination_rate": sum(rating < 3 for rating in ratings) / 96,
    "informativeness": sum(rating - 3 if rating >= 3 else rating for rating in ratings) / 96 / 3 * 100,
    **{f"score/{name}": sum(ratings[place::8]) / 12 for place, name in enumerate(TYPES)},
}

# HallusionBench ------------------------------------------------------------------------------------------------------------------------

rows, replies = [], []
for category in ("VD", "VS"):
    for group in range(5):
        for figure in range(draw.randrange(1, 4)):
            for question in range(2 if figure == 0 else draw.randrange(1, 3)):
                visual = "0" if category == "VS" and figure == 0 else "1" if figure < 2 else "2"
                rows.append({
                    "category": category, "subcategory": "chart", "visual_input": visual, "set_id": str(group),
                    "figure_id": str(figure), "question_id": str(question), "gt_answer": draw.choice("01"),
                })
                replies.append(draw.choice(["Correct.", "correct", "It is Incorrect", "unclear", "Not correct", "INCORRECT, not correct"]))
verdicts = ["0" if "incorrect" in reply.lower() else "1" if "correct" in reply.lower() else "2" for reply in replies]
files["hallusion_answers.json"] = [row | {"gpt4v_output_gpt_check": verdict} for row, verdict in zip(rows, verdicts)]
files["hallusion_replies.jsonl"] = lines({"judgment": reply} for reply in replies)
blind = [row["category"] == "VS" and row["figure_id"] == "0" for row in rows]
right = [verdict == "1" or (verdict == "2" and no_image) for verdict, no_image in zip(verdicts, blind)]


def groups(key, keep):
    table = collections.defaultdict(list)
    for row, no_image, is_right in zip(rows, blind, right):
        if keep(row, no_image):
            table[row["category"], row["set_id"], row[key]].append(is_right)
    return list(table.values())


figures = groups("figure_id", lambda row, no_image: not no_image)
accuracy = lambda members: 100 * sum(all(group) for group in members) / len(members)
wrong = [row["gt_answer"] for row, is_right in zip(rows, right) if not is_right]
expected["hallusion"] = {
    "a_acc": 100 * sum(right) / len(right), "f_acc": accuracy(figures), "q_acc": accuracy(groups("question_id", lambda row, _: True)),
    "easy_q_acc": accuracy(groups("question_id", lambda row, _: row["visual_input"] != "2")),
    "hard_q_acc": accuracy(groups("question_id", lambda row, _: row["visual_input"] == "2")),
    "figures_wrong": 100 * sum(not any(group) for group in figures) / len(figures),
    "figures_inconsistent": 100 * sum(any(group) and not all(group) for group in figures) / len(figures),
    "figure_score": sum(sum(group) / len(group) for group in figures) / len(figures),
    "yes_bias_difference": sum(is_right == (row["gt_answer"] == "1") for row, is_right in zip(rows, right)) / len(rows)
    - sum(row["gt_answer"] == "1" for row in rows) / len(rows),
    "yes_bias_fp_ratio": wrong.count("0") / len(wrong),
}

HERE.mkdir(exist_ok=True)
HERE.joinpath("cases.json").write_text(json.dumps({"files": files, "expected": expected}, separators=(",", ":"), ensure_ascii=False) + "\n")
