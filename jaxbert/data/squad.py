"""SQuAD's JSON as records: 1.1, 2.0 and CMRC."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jaxbert.data.records import ExamplesError, OnBad, Record, lines, text_fault
from jaxbert.finetune.config import ExamplesConfig


def read_squad(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """A record for each question: "id", "question", "context", "answers" [(text, start)], "impossible", "title"."""
    try:
        content = json.loads("".join(line for _, line in lines(path)))
        if isinstance(content, list):
            raise ExamplesError(f"{path}: is a list, and no SQuAD file: write an object on each line, as .jsonl")
        articles = content["data"]
        # What is wrong with one question is no reason to doubt the file.
        questions = [
            (article.get("title", ""), number, paragraph.get("context"), question)
            for article in articles
            for number, (paragraph, question) in enumerate(
                ((paragraph, one) for paragraph in article["paragraphs"] for one in paragraph["qas"]), 1
            )
        ]
    except ExamplesError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExamplesError(
            f"{path}: is no SQuAD file ({type(error).__name__}: {str(error).splitlines()[0]}): other JSON is read as .jsonl"
        ) from None
    for title, number, context, question in questions:
        named = isinstance(question, Mapping) and question.get("id") is not None
        place = f"{path}:{question['id']}" if named else f"{path}:{title or 'an article'}, question {number}"
        if fault := _squad_fault(question, context):
            on_bad(place, fault)
            continue
        values = {
            "id": str(question["id"]),
            "question": question["question"],
            "context": context,
            "answers": [(answer["text"], answer["answer_start"]) for answer in question.get("answers") or ()],
            "impossible": bool(question.get("is_impossible", False)),
            "title": title,
        }
        yield Record(values, place)


def _squad_fault(question: Any, context: Any) -> str | None:
    if not isinstance(question, Mapping):
        return "is no question"
    if question.get("id") is None:
        return "has no id"
    if not isinstance(question.get("question"), str) or not isinstance(context, str):
        return "its question or context is no text"
    answers = question.get("answers")
    if answers is None and not question.get("is_impossible", False):
        return "has no answers, and is_impossible does not say that there are none"
    if answers is not None and not isinstance(answers, list):
        return "its answers are no list"
    for answer in answers or ():
        known = isinstance(answer, Mapping)
        if not known or not isinstance(answer.get("text"), str) or type(answer.get("answer_start")) is not int:
            return "an answer has no text or no answer_start"
    return text_fault(question["question"]) or text_fault(context)
