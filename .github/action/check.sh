#!/usr/bin/env bash
# The step of action.yml: install lora-hub into an environment of its own, check, and say what was found.
set -euo pipefail

: "${INPUT_ADAPTERS:?names no adapter}" "${GITHUB_OUTPUT:?}" "${GITHUB_STEP_SUMMARY:?}"
work=$(mktemp -d "${RUNNER_TEMP:-/tmp}/lora-hub.XXXXXX")

# Print standard input as an error of this step: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
annotate() {
  local text
  text=$(cat)
  text=${text//'%'/'%25'}
  text=${text//$'\r'/'%0D'}
  text=${text//$'\n'/'%0A'}
  echo "::error title=lora-hub check::$text"
}

# Set `python` to the one that has lora-hub.
provide() {
  local what=$GITHUB_ACTION_PATH
  case ${INPUT_VERSION:-} in
  installed)
    python=python
    return
    ;;
  ?*)
    # Nothing but a version may reach pip: no option, no URL, no other package.
    if [[ ! $INPUT_VERSION =~ ^[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?$ ]]; then
      annotate <<<"the input \`version\` is neither a version, such as 0.1.0, nor \`installed\`"
      exit 2
    fi
    what="lora-hub==$INPUT_VERSION"
    ;;
  esac
  python -m venv "$work/venv"
  python=$work/venv/bin/python
  "$python" -m pip install --quiet --disable-pip-version-check "$what"
}

# Show standard input in the log; no line of it is a command to the runner.
show() {
  local token
  token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  echo "::stop-commands::$token"
  cat
  printf '\n::%s::\n' "$token"
}

provide
options=(--format github --output "markdown=$work/summary.md" --output "json=$work/report.json")
[[ -z ${INPUT_BASE:-} ]] || options+=("--base=$INPUT_BASE")
[[ -z ${INPUT_FAIL_ON:-} ]] || options+=("--fail-on=$INPUT_FAIL_ON")
[[ -z ${INPUT_SARIF:-} ]] || options+=(--output "sarif=$INPUT_SARIF")
adapters=()
while IFS= read -r line; do
  line=${line#"${line%%[![:space:]]*}"} # spaces around a line of YAML
  line=${line%"${line##*[![:space:]]}"}
  [[ -z $line ]] || adapters+=("$line")
done <<<"$INPUT_ADAPTERS"

# -P: a module in the repository that is checked is not imported instead of ours.
code=0
"$python" -P -m lora_hub check "${options[@]}" -- "${adapters[@]}" 2>"$work/stderr" || code=$?
[[ ! -s $work/stderr ]] || show <"$work/stderr"

echo "exit-code=$code" >>"$GITHUB_OUTPUT"
if [[ ! -s $work/report.json ]]; then # no adapter, no base, no network: there is nothing to report
  annotate <"$work/stderr"
  exit "$code"
fi
cat "$work/summary.md" >>"$GITHUB_STEP_SUMMARY"
"$python" -P - "$work/report.json" >>"$GITHUB_OUTPUT" <<'PYTHON'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    summary = json.load(file)["summary"]
print(f"errors={summary['errors']}\nwarnings={summary['warnings']}\nreport={sys.argv[1]}")
PYTHON
exit "$code"
