#!/usr/bin/env bash
# scikit-learn 1.9.1, LightGBM 4.7.0 and XGBoost 3.2.0 read one libsvm file, whose indices count from 1 as LIBSVM's do,
# as 3, 4 and 4 features: scikit-learn guesses the first index for each file by itself (from 0 where index 0 occurs),
# LightGBM and XGBoost count from 0 and make up a column that is always missing or 0.  So weights, importances and
# `num_feature` of one are shifted by one against the other.
# Way out: say it: load_svmlight_file(zero_based=False, n_features=3); drop column 0 of the others.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q scikit-learn==1.9.1 lightgbm==4.7.0 xgboost-cpu==3.2.0 numpy==2.4.6 scipy==1.17.1
seen=$(venv/bin/python -W ignore - 2>/dev/null <<'P'
import lightgbm
import numpy as np
import xgboost
from sklearn.datasets import load_svmlight_file

rows = np.random.default_rng(0).normal(size=(50, 3))


def write(name, first):
    with open(name, "w") as file:
        for row in rows:
            entries = " ".join(f"{column + first}:{value:.4f}" for column, value in enumerate(row))
            file.write(f"{int(row[0] > 0)} {entries}\n")


write("from1.svm", 1)
write("from0.svm", 0)
dataset = lightgbm.Dataset("from1.svm", params={"verbose": -1})
dataset.construct()
print("scikit-learn", load_svmlight_file("from1.svm")[0].shape[1], end=" ")
print("LightGBM", dataset.num_feature(), end=" ")
print("XGBoost", xgboost.DMatrix("from1.svm?format=libsvm").num_col(), end=" ")
shifted = load_svmlight_file("from1.svm", zero_based=True)[0]
print("same as from 0:", np.array_equal(shifted[:, 1:].toarray(), load_svmlight_file("from0.svm")[0].toarray()))
P
)
echo "$seen"
expected="scikit-learn 3 LightGBM 4 XGBoost 4 same as from 0: True"
[ "$seen" = "$expected" ] || { echo "changed: expected $expected" >&2; exit 1; }
