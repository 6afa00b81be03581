"""``fedhpc pack`` of TCGA: cancer stage from several tabular modalities."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fedhpc.data.packers.cli_shared import (
    Folder,
    Out,
    Overwrite,
    Seed,
    command_line,
    done,
    fractions_of,
    user_errors,
)


class MutationGenes(str, Enum):
    union, common = "union", "common"


Groups = Annotated[int, typer.Option(help="Groups of whole hospitals a cohort: label hospital_group.", min=1)]
Split = Annotated[str, typer.Option(help="Fractions train,val,test, drawn by patient within hospital group and stage.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("tcga-stage")(tcga_stage)
    app.command("tcga")(tcga)


def tcga_stage(
    folder: Folder,
    out: Out,
    mutation_genes: Annotated[
        MutationGenes, typer.Option(help="Genes of any cohort's table (NaN where a table lacks one), or of every.")
    ] = MutationGenes.union,
    groups: Groups = 3,
    split: Split = "0.6,0.2,0.2",
    random_seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """TCGA BRCA, LUSC, LIHC: mRNA, copy number, mutations, clinical; stage, TP53. Non-commercial academic use.

    FOLDER: ../shared/data/tcga_stage, with clinical.csv, rna_common.npz, cnv_common.npz and mut_<cohort>.npz.
    """
    with user_errors():
        from fedhpc.data.packers.tcga_stage import pack_tcga_stage

        fractions = fractions_of(split)
        assert fractions is not None
        done(pack_tcga_stage(
            folder, out, mutation_genes=mutation_genes.value, groups=groups, split=fractions, random_seed=random_seed,
            overwrite=overwrite, command=command_line(),
        ))  # fmt: skip


def tcga(
    folder: Folder,
    out: Out,
    cohorts: Annotated[str, typer.Option(help="Such as BRCA,LUSC,LIHC; default: all that the folder holds.")] = "",
    clinical_columns: Annotated[
        str, typer.Option(help="Features, comma separated: numbers or categories; default: age, sex and race.")
    ] = "",
    stage_column: Annotated[
        str | None, typer.Option(help="Of the clinical tables; default: under any of its usual names.")
    ] = None,
    genes: Annotated[
        Path | None, typer.Option(help="Text file, a gene a line: only these of mrna, cnv and mutation.")
    ] = None,
    groups: Groups = 3,
    split: Split = "0.6,0.2,0.2",
    random_seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Your own TCGA: expression, clinical tables, copy number, mutations, histology.

    FOLDER holds for each cohort (CSV or tabs, gzip or not, patients down or across):

    - <cohort>_mrna, such as brca_mrna.csv: expression of Xena, GDC or Firehose

    - <cohort>_clinical: with a column of stages, or else <cohort>_stages

    - where you have them <cohort>_cnv, <cohort>_mutation (a number a gene; above
    0 is mutated) and <cohort>_image (histology features, such as the 150 of
    Cheng et al. 2017)

    Xena's own names do as well: TCGA-BRCA.star_fpkm.tsv.gz,
    TCGA-BRCA.clinical.tsv.gz, TCGA.BRCA.sampleMap_HiSeqV2.gz.
    """
    with user_errors():
        from fedhpc.data.packers.tcga_xena import pack_tcga_folder

        fractions = fractions_of(split)
        assert fractions is not None
        done(pack_tcga_folder(
            folder, out, cohorts=_listed(cohorts), clinical_columns=_listed(clinical_columns),
            stage_column=stage_column, genes=genes, groups=groups, split=fractions, random_seed=random_seed,
            overwrite=overwrite, command=command_line(),
        ))  # fmt: skip


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
