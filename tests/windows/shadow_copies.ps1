#Requires -Version 7.4
#Requires -RunAsAdministrator
<#
A volume in use, imaged through a shadow copy and restored to another disk. Virtual disks alone are written.
Leaves nothing behind, also where it fails.
#>

. "$PSScriptRoot\common.ps1"

function Get-ShadowCopies { @(Get-CimInstance -ClassName Win32_ShadowCopy | ForEach-Object ID | Sort-Object) }

$work = Join-Path ([IO.Path]::GetTempPath()) "imagefs shadow copies $PID"
$vhds = "$work\source.vhdx", "$work\target.vhdx"
$held = $null
New-Item -ItemType Directory $work, "$work\volume", "$work\disk" | Out-Null
try {
    Write-Step 'a volume with a file that a program holds open'
    $sourceDisk = New-Vhd $vhds[0] 2048
    Add-Volume $sourceDisk 'S' 'Source'
    Add-Files 'S:'
    Write-Random 'S:\held open.bin' 3000000 502
    $wanted = Get-Hashes 'S:'
    $held = [IO.File]::Open('S:\held open.bin', 'Open', 'ReadWrite', 'None')
    $before = Get-ShadowCopies

    Write-Step 'imaging it by its letter, and its disk'
    Invoke-Imagefs backup 'S:' "$work\volume" --verify
    Invoke-Imagefs backup "disk$sourceDisk" "$work\disk" --verify
    $left = Get-ShadowCopies
    Assert-True (($left -join ' ') -eq ($before -join ' ')) "shadow copies are left: $($left -join ' ')"
    $held.Close()
    $held = $null

    foreach ($set in 'volume', 'disk') {
        Invoke-Imagefs verify "$work\$set"
        $image = Find-Image "$work\$set"
        New-Item -ItemType Directory "$work\copy of $set" | Out-Null
        Invoke-Imagefs cp $image (Find-Volume $image) "$work\copy of $set\all"
        Assert-SameHashes $wanted (Get-Hashes "$work\copy of $set\all") "the image of the $set"
    }

    Write-Step 'restoring to another disk'
    $targetDisk = New-Vhd $vhds[1] 2048
    Invoke-Imagefs restore (Find-Image "$work\disk") "\\.\PhysicalDrive$targetDisk" --new-id --yes --verify
    Update-Disk -Number $targetDisk
    if ((Get-Disk -Number $targetDisk).IsOffline) { Set-Disk -Number $targetDisk -IsOffline $false }
    $partition = Get-Partition -DiskNumber $targetDisk | Where-Object Type -EQ 'Basic'
    Set-Partition -InputObject $partition -NewDriveLetter 'T'
    Assert-SameHashes $wanted (Get-Hashes 'T:') 'the restored disk'
    & chkdsk.exe 'T:' | Out-Host
    Assert-True ($LASTEXITCODE -eq 0) "chkdsk ended with $LASTEXITCODE"
}
finally {
    if ($null -ne $held) { $held.Close() }
    $vhds | ForEach-Object { Remove-Vhd $_ }
    Remove-Item -LiteralPath $work -Recurse -Force -ErrorAction Continue
}
Write-Host 'all is as it should be'
exit 0  # not that of the last program
